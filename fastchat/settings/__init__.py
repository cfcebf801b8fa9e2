"""Room: settings. Each setting once, and everything that reads them. Needs neither torch nor transformers.

arguments.py      the settings themselves: dataclass fields with help, group, range, other names, and resume rule
transformers_arguments.py  those that transformers defines: offered ones, and refused ones with the reason
fields.py         what a field's metadata can say
options.py        a field as an `Option`; command line, recipe -> typed values
typed.py          one raw value -> a switch, a number, text, a list, a mapping
ranges.py         numbers outside their range
foreign.py        names of other programs and of older versions that have no setting here
recipe_files.py   where a recipe is, and what it holds (YAML, or a run's training.json)
values.py         the settings of one run with where each came from
help.py           `--help`; reference.py the table in docs/settings.md
"""
