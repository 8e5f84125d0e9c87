"""Hostile files: what each reader must do with any bytes, asked by atheris, hypothesis and pytest.

`targets.py` says what is asked of each reader (once, for all three), `mutate.py` how files are
bent, `seeds/` keeps what was found. `python -m tests.fuzz TARGET --seconds N --corpus DIR` hunts.
"""
