"""The OpenAI-compatible API: requests become token ids with the encoder of training, an engine generates, and answers
become OpenAI's objects.

    parameters.py   what a request may ask for
    served.py       a model: its prompts and what its answers say
    answering.py    one answer while it is generated
    replies.py      OpenAI's objects
    admission.py    how many answers are generated at once
    http.py         bodies, streams, clients that are gone
    app.py          the addresses
    server.py       the socket, the process, its signals
"""
