"""Room: settings. Each setting once, and everything that reads them. Needs neither torch nor transformers.

arguments.py      the settings: dataclass fields with help, group, range, other names, and whether they may change on
                  resume; a plain setting needs no more than a field there (then run
                  `python -m fastchat.settings.reference > docs/settings.md`)
transformers_arguments.py  those that transformers defines: offered ones, and refused ones with the reason
newer.py          those that only a newer transformers has: passed on
fields.py         what a field can say about its setting
options.py        a field as an `Option`; command line and recipe -> typed values; ranges
readers.py        the reader of each command
unknown.py        what is said about names that are no setting; foreign.py: names and values of other programs
typed.py          one raw value -> a switch, a number, text, a list, a mapping
recipe_files.py   where a recipe is, and what it holds (YAML, or the training.json of a run)
values.py         the settings of one run, each with where it came from
help.py           `--help`; reference.py: docs/settings.md
"""
