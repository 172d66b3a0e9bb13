"""From predictions to figures, tables and pictures."""
