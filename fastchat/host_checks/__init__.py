"""`fastchat doctor --hosts`: whether several hosts can train together.

member.py runs on every host and answers orders, one JSON object per line; connection.py starts it there; checks.py
compares the answers; command.py is the command.
"""
