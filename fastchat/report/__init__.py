"""The report of a run, made from the files of its folder alone; needs neither torch nor transformers.

reading.py   the files of a run folder, whatever is missing or damaged
figures.py   numbers of a run in words: the verdict, the data, what it took
charts.py    which curves there are, from the rows of metrics.jsonl
svg.py       one chart as inline SVG that fits every width
png.py       the same charts as PNGs, where matplotlib is installed
html.py      the page of one run, or of several that are compared
writing.py   report.html and the PNGs of a run folder
command.py   `fastchat report RUN [RUN ...]`
"""
