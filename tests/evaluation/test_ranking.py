"""Retrieval figures on cases small enough to do by hand."""

import numpy as np

from lookupjax.evaluation.ranking import average_precision, cosine, matching_curve, ranked_hits


def test_average_precision_and_matching_curve_by_hand():
    similarity = np.array([[0.9, 0.8, 0.7, 0.6], [0.1, 0.2, 0.3, 0.4], [0.5, 0.4, 0.3, 0.2]])
    relevant = np.array([[1, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]], bool)
    hits, counted = ranked_hits(similarity, relevant)
    assert counted.all()
    np.testing.assert_allclose(average_precision(hits), [(1 + 2 / 3) / 2, 1 / 4, np.nan])
    np.testing.assert_allclose(matching_curve(hits), [0.5, 0.5, 0.5, 1.0])


def test_ignored_entries_take_no_rank():
    similarity, relevant = np.array([[0.9, 0.8, 0.7]]), np.array([[True, False, True]])
    hits, counted = ranked_hits(similarity, relevant, ignored=np.array([[True, False, False]]))
    np.testing.assert_array_equal(hits, [[False, True, False]])
    np.testing.assert_array_equal(counted, [[True, True, False]])
    np.testing.assert_allclose(average_precision(hits), [0.5])


def test_cosine_ignores_length():
    a = np.random.default_rng(0).normal(size=(3, 5))
    np.testing.assert_allclose(cosine(a, 7.0 * a).diagonal(), 1.0)
