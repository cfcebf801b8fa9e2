"""Settings: each is defined once, and all code that reads them is here. Needs neither torch nor transformers.

arguments.py      the settings: dataclass fields with help, group, range, other names, and whether they may change on
                  resume; to add a plain setting, add a field there (then run
                  `python -m fastchat.settings.reference > docs/settings.md`)
transformers_arguments.py  the settings that transformers defines: supported ones, and refused ones with the reason
newer.py          settings that only a newer transformers has: passed through
fields.py         the metadata of a setting's field
options.py        a field as an `Option`; command line and recipe -> typed values; ranges
readers.py        the argument reader of each command
unknown.py        messages about unknown names; foreign.py: names and values of other programs
targets.py        which layers of a model the LoRA targets mean, from the names of its layers
parsing.py        one raw value -> a bool, a number, a string, a list, a mapping
recipe_files.py   finding and reading recipes (YAML, or the training.json of a run)
values.py         the settings of one run, each with its origin
help.py           `--help`; reference.py: docs/settings.md
"""
