"""What runs on a worker: the recommender, its training and its evaluation. Imports the nouns and recsys only."""

import logging

# PEFT imports bitsandbytes wherever it is installed, and that warns of kernels that this CPU might have, wanted or not.
logging.getLogger("bitsandbytes.backends.cpu").setLevel(logging.ERROR)
