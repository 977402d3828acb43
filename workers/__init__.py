"""What runs on a worker: the recommender, its training and its evaluation. Imports the nouns and recsys only."""
