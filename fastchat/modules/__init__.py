"""Room: upstream's settings for quantised models, which programs construct even where they are off.

`fastchat.model.load_model` takes them and refuses those that ask for something: transformers loads such models.
"""
