"""The names and signs of mathematics that are read, in LaTeX and in Python, and what they are called in a tree."""

from __future__ import annotations

FUNCTIONS = {
    "sqrt": "sqrt", "sin": "sin", "cos": "cos", "tan": "tan", "cot": "cot", "sec": "sec", "csc": "csc", "sinh": "sinh",
    "cosh": "cosh", "tanh": "tanh", "exp": "exp", "ln": "ln", "floor": "floor", "abs": "abs", "factorial": "factorial",
    "arcsin": "asin", "arccos": "acos", "arctan": "atan", "asin": "asin", "acos": "acos", "atan": "atan",
    "ceil": "ceiling", "ceiling": "ceiling", "Abs": "abs", "cbrt": "cbrt",
}  # fmt: skip
GREEK = {
    "alpha", "beta", "gamma", "delta", "epsilon", "varepsilon", "zeta", "eta", "theta", "vartheta", "iota", "kappa",
    "lambda", "mu", "nu", "xi", "rho", "sigma", "tau", "phi", "varphi", "chi", "psi", "omega",
}  # fmt: skip
CONSTANTS = {"pi": "pi", "infty": "oo", "oo": "oo", "inf": "oo", "infinity": "oo", "Infinity": "oo", "E": "e"}
RELATIONS = {
    "=": "=", "==": "=", "<": "<", ">": ">", "<=": "<=", ">=": ">=", "!=": "!=", "\\le": "<=", "\\leq": "<=",
    "\\ge": ">=", "\\geq": ">=", "\\lt": "<", "\\gt": ">", "\\ne": "!=", "\\neq": "!=", "\\leqslant": "<=",
    "\\geqslant": ">=", "\\in": "in", "\\approx": "=", "\\equiv": "=",
}  # fmt: skip
TIMES = ("*", "\\cdot", "\\times", "\\ast")
OVER = ("/", "\\div")
CLOSERS = {  # what closes a bracket
    "(": (")", "]"), "[": (")", "]"), "\\{": ("\\}",), "{": ("}",), "\\lfloor": ("\\rfloor",),
    "\\lceil": ("\\rceil",), "\\lbrace": ("\\rbrace",), "\\langle": ("\\rangle",),
}  # fmt: skip
# Characters of plain text that LaTeX has commands for.
CHARACTERS = {
    "−": "-", "–": "-", "×": "*", "·": "*", "÷": "/", "⁄": "/", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ",
    "∞": r"\infty ", "π": r"\pi ", "√": r"\sqrt ", "∪": r"\cup ", "∩": r"\cap ", "∅": r"\emptyset ", "∈": r"\in ",
    "±": r"\pm ", "°": "", "€": "", "£": "", "¥": "", "½": r" \frac{1}{2}", "⅓": r" \frac{1}{3}",
    "⅔": r" \frac{2}{3}", "¼": r" \frac{1}{4}", "¾": r" \frac{3}{4}", "⅕": r" \frac{1}{5}", "⅛": r" \frac{1}{8}",
    "²": "^{2}", "³": "^{3}", "\N{NO-BREAK SPACE}": " ",
}  # fmt: skip
