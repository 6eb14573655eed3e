"""Exercise 0 of 11: slopes and counts. A derivative by measuring, and a language model by counting. No chain rule."""

from __future__ import annotations

import numpy as np  # noqa: F401 - for your functions


def derivative(f, x, h=1e-5):
    """The slope of f at x: by how much f(x) changes for each unit that x changes. f takes and returns a number.

    1. Go from x - h to x + h. How far is that? By how much does f change on the way? So how much for each unit?
    2. Why not from x to x + h? Take f(x) = x^2. Work out both quotients by hand: one is 2x, the other is not.
    """
    raise NotImplementedError("not written yet")


def gradient(f, x, h=1e-5):
    """The slope of f with respect to each element of x, as an array with the shape of x. f takes an array of this shape
    and returns a number. x is an array of floats, and is unchanged afterwards.

      1. Let only one element move, from h below to h above, while the others stay where they are. What is its slope?
      2. Do the same for every element. `for place in np.ndindex(x.shape)` visits x[place], whatever the shape is.
      3. x.copy() is an array that may be changed. What must be done before the next element moves?

    How often is f called if x has a million elements? The chain rule gives all of these slopes for the price of about
    two calls. That is why the other exercises exist. This function is how they are checked.
    """
    raise NotImplementedError("not written yet")


def count_pairs(ids, V):
    """The (V, V) array of counts: counts[a, b] says how often b comes directly after a in `ids`, integers below V.

    1. Which pairs does [2, 0, 0, 1] consist of? How many pairs do n ids have?
    2. np.zeros((V, V), int) is the table before the first pair.
    """
    raise NotImplementedError("not written yet")


def probabilities(counts):
    """p[a, b]: how likely b is to come after a, from the counts (V, V) of pairs. p is (V, V); each row adds up to 1.

    One is added to each count first, so that no pair is impossible.

      1. Row a of the counts is all that is known about a. By what must it be divided to add up to 1?
      2. A sum over a row has one axis less than the array, and NumPy lines axes up from the right. Which row or column
         would each sum then divide? What does keepdims=True change?

    p is a language model: after character a, draw the next one from row a. The first rung of the ladder
    (`python examples/ladder.py --rung bigram`) learns such a table with gradients.
    """
    raise NotImplementedError("not written yet")
