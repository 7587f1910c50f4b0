"""The worker: claims tasks, runs their handlers, settles what they answer.

supervisor   the parent: starts the keeper and N runners, restarts what dies, passes signals on
keeper       tiny process without user code: beats for all runners, watches deadlines, reaps what a crash left
runner       one process: claimer -> slots (executor) -> settler
"""
