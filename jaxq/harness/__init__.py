"""The command line: Hydra configuration, one run or a sweep, report files and the terminal."""
