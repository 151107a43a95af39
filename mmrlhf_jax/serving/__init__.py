"""The server: chat and rewards of a model over HTTP (`mmrlhf serve`), for trainers and OpenAI's clients.

Requests are checked and decoded off the event loop, and written by one thread that runs the lanes of `inference`. Whatever a
request says, it selects no code, no template and no file.
"""
