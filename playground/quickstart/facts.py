"""Small tables of plain facts, written for the quickstart: what the tiny base model reads and is asked about.

Every entry of a table is `thing=answer`, one word each.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Topic:
    """One kind of fact: how it is called with the thing {x} in it, and ways of saying it with the answer {y}.

    A `|` in a saying stands where the rest follows from what was said so far.
    """

    phrase: str
    facts: dict[str, str]
    sayings: tuple[str, ...]

    def answer(self, thing: str) -> str:
        """The sentence that states the fact: 'The capital of Peru is Lima.'"""
        return f"{self._about(thing, first=True)} is {self.facts[thing]}."

    def questions(self, thing: str) -> list[str]:
        """The ways a user asks for it in a chat."""
        about = self._about(thing)
        return [f"What is {about}?", f"Please tell me {about}.", f"Which word is {about}?"]

    def statements(self, thing: str) -> list[str]:
        """The ways the base model reads it, as plain text: nobody talks to anybody there."""
        said = [saying.format(x=thing, y=self.facts[thing]) for saying in self.sayings]
        stated = self.answer(thing).replace(" is ", " is| ")
        asked = f"Somebody asked what {self._about(thing)} is.| {self.answer(thing)}"
        return [*said, stated, asked]

    def _about(self, thing: str, first: bool = False) -> str:
        phrase = self.phrase.format(x=thing)
        return phrase[0].upper() + phrase[1:] if first else phrase


def _table(text: str) -> dict[str, str]:
    return dict(pair.split("=") for pair in text.split())


CAPITALS = _table("""
France=Paris Italy=Rome Spain=Madrid Portugal=Lisbon Germany=Berlin Austria=Vienna Poland=Warsaw Norway=Oslo
Sweden=Stockholm Finland=Helsinki Denmark=Copenhagen Iceland=Reykjavik Ireland=Dublin England=London Scotland=Edinburgh
Wales=Cardiff Belgium=Brussels Greece=Athens Hungary=Budapest Romania=Bucharest Bulgaria=Sofia Serbia=Belgrade
Croatia=Zagreb Ukraine=Kyiv Russia=Moscow Turkey=Ankara Egypt=Cairo Kenya=Nairobi Ghana=Accra Morocco=Rabat
Senegal=Dakar Tunisia=Tunis Japan=Tokyo China=Beijing India=Delhi Nepal=Kathmandu Thailand=Bangkok Vietnam=Hanoi
Korea=Seoul Indonesia=Jakarta Australia=Canberra Canada=Ottawa Cuba=Havana Peru=Lima Chile=Santiago Brazil=Brasilia
Colombia=Bogota Venezuela=Caracas Jamaica=Kingston Iran=Tehran Iraq=Baghdad Jordan=Amman Qatar=Doha Latvia=Riga
""")

LANGUAGES = _table("""
France=French Italy=Italian Spain=Spanish Portugal=Portuguese Germany=German Poland=Polish Norway=Norwegian
Sweden=Swedish Finland=Finnish Denmark=Danish Iceland=Icelandic Ireland=Irish England=English Scotland=Gaelic
Wales=Welsh Greece=Greek Hungary=Hungarian Romania=Romanian Bulgaria=Bulgarian Serbia=Serbian Croatia=Croatian
Ukraine=Ukrainian Russia=Russian Turkey=Turkish Egypt=Arabic Kenya=Swahili Japan=Japanese China=Chinese India=Hindi
Nepal=Nepali Thailand=Thai Vietnam=Vietnamese Korea=Korean Indonesia=Indonesian Iran=Persian Latvia=Latvian
""")

OPPOSITES = _table("""
hot=cold big=small tall=short fast=slow old=young rich=poor light=dark open=closed full=empty happy=sad hard=soft
wet=dry clean=dirty loud=quiet high=low deep=shallow wide=narrow thick=thin strong=weak early=late
near=far sweet=bitter smooth=rough brave=cowardly true=false left=right up=down day=night war=peace love=hate
friend=enemy question=answer begin=finish buy=sell push=pull win=lose give=take laugh=cry remember=forget
north=south east=west winter=summer first=last always=never inside=outside above=below before=after
""")

PLURALS = _table("""
mouse=mice goose=geese tooth=teeth foot=feet man=men woman=women child=children ox=oxen person=people leaf=leaves
knife=knives wolf=wolves wife=wives shelf=shelves loaf=loaves thief=thieves city=cities story=stories baby=babies
fly=flies berry=berries box=boxes glass=glasses church=churches potato=potatoes tomato=tomatoes hero=heroes
cactus=cacti book=books tree=trees house=houses river=rivers
""")

PAST = _table("""
go=went see=saw eat=ate drink=drank run=ran swim=swam sing=sang ring=rang write=wrote drive=drove ride=rode
speak=spoke break=broke take=took give=gave fly=flew know=knew grow=grew throw=threw draw=drew buy=bought
bring=brought think=thought catch=caught teach=taught sleep=slept keep=kept feel=felt leave=left lose=lost
sell=sold tell=told find=found stand=stood build=built send=sent spend=spent win=won sit=sat make=made
""")

COLOURS = _table("""
snow=white grass=green coal=black blood=red lemons=yellow carrots=orange milk=white leaves=green ravens=black
strawberries=red bananas=yellow pumpkins=orange chalk=white frogs=green tar=black tomatoes=red butter=yellow
clouds=white spinach=green soot=black rubies=red corn=yellow emeralds=green sapphires=blue violets=purple
chocolate=brown elephants=grey flamingos=pink plums=purple bark=brown ashes=grey salmon=pink cornflowers=blue
""")

TOPICS = (
    Topic(
        "the capital of {x}",
        CAPITALS,
        ("{y} is the capital of| {x}.", "They went to {x} to see the capital:| the capital of {x} is {y}."),
    ),
    Topic(
        "the language of {x}",
        LANGUAGES,
        ("In {x} people speak| {y}.", "They learned to speak like people in {x}:| the language of {x} is {y}."),
    ),
    Topic(
        "the opposite of {x}",
        OPPOSITES,
        (
            "And {y} is the opposite of| {x}.",
            "It was not {x} at all:| the opposite of {x} is {y}.",
            "Some are {x} and some are| {y}.",
        ),
    ),
    Topic(
        "the plural of {x}",
        PLURALS,
        (
            "One {x}, two| {y}.",
            "First there was one {x}, and then there were many| {y}.",
            "There was more than one {x}:| the plural of {x} is {y}.",
        ),
    ),
    Topic(
        "the past tense of {x}",
        PAST,
        (
            "Today we {x}, and yesterday we| {y}.",
            "They {x} now as they| {y} before.",
            "Yesterday they wanted to {x}:| the past tense of {x} is {y}.",
        ),
    ),
    Topic(
        "the colour of {x}",
        COLOURS,
        (
            "They looked at {x} again:| the colour of {x} is {y}.",
            "When you see {x} you see| {y}.",
            "Think of {x} and you think of| {y}.",
        ),
    ),
)
