"""Parts that know no task and no dataset: embeddings, norms, MLPs, position tables, regularisers."""
