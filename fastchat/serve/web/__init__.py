"""The page in front of the API: a chat in the browser, made with gradio.

`conversation` is what is said, `requests` are the requests to the API, `page` shows both, `guard` stands before it.
"""
