"""The paper's tables and figures as commands, and what several runs say together."""
