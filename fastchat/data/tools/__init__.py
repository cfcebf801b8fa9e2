"""Tools: what the data commands share (the commands themselves are fastchat/data/NAME.py), and the code sandbox."""
