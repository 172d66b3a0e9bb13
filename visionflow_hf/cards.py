"""Where the templates of cards lie: the wheel keeps them in visionflow_hf/card, a checkout at its root."""

from pathlib import Path

PACKAGE = Path(__file__).parent


def card_template(name: str) -> Path:
    return PACKAGE / "card" / name if (PACKAGE / "card").is_dir() else PACKAGE.parent / name
