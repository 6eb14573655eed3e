"""The page of examples/playground.py: a trained model in the browser.

analysis.py    what the page shows about one prediction, computed by the engine
server.py      the local server: requests, streams, and who may ask
address.py     where it is, and what it needs
live.py        following a run while it trains
export.py      one file with the model inside, which needs no server
static/        the pages: HTML, CSS and JavaScript, without libraries
"""
