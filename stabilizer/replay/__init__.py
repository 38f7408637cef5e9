"""Replays recorded runs through the rules, as they would have been judged live."""
