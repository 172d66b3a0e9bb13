"""The table of faults: one row a fault, and what went wrong, one line each."""

from dataclasses import dataclass, field


@dataclass
class Row:
    """One fault: how often it was tried and survived, bytes of the user's that were lost, results that were wrong."""

    fault: str
    tried: int = 0
    survived: int = 0
    lost_bytes: int = 0
    wrong_results: int = 0
    problems: list[str] = field(default_factory=list)

    def add(self, problems: list[str], tried: int = 1, lost: int = 0, wrong: int = 0) -> None:
        """Count some tries, survived where there are no problems."""
        self.tried += tried
        self.lost_bytes += lost
        self.wrong_results += wrong
        self.problems += problems
        if not problems:
            self.survived += tried


def written(rows: list[Row]) -> str:
    """The table in Markdown."""
    head = "| fault | tried | survived | lost bytes | wrong results |\n|---|---|---|---|---|"
    lines = [f"| {one.fault} | {one.tried} | {one.survived} | {one.lost_bytes} | {one.wrong_results} |" for one in rows]
    return "\n".join([head, *lines])
