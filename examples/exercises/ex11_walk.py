"""Exercise 11 of 11: the walk. It calls the backward passes in the right order and adds up the gradients that meet."""

from __future__ import annotations


def order(root):
    """A list of all nodes that `root` was computed from: root first, each node once, and each before its inputs.

    node.inputs are the nodes that a node was computed from, a tuple. A leaf has none: (). The list contains the leaves.

      1. Let c be computed from a and b, and b from a: c.inputs is (a, b), b.inputs is (a,). Which order is right? Which
         one do you get if you list each node as soon as you find it?
      2. A node may be listed when all nodes that use it are listed. So count first: go through all nodes from root on,
         and count how often each occurs among the inputs of others. Make sure that you follow each node only once.
      3. Begin with root. For each node that you list, take one use off each of its inputs. What does zero mean?
      4. A chain may be a million nodes long, and Python allows about a thousand calls inside each other. So use a loop
         with a list of nodes that wait. (`x in some_list` looks at every element; dictionaries and sets do not.)
    """
    raise NotImplementedError("not written yet")


def backward(root, g):
    """Add dL/dx to x.grad for every leaf x that `root` was computed from. g is dL/d(root), an array.

    node.backward(g) takes dL/d(node) and returns a list of gradients, one for each of node.inputs. Leaves have none.
    x.grad is None until a gradient arrives. Use order(root).

      1. Keep the gradients that are on their way in a dictionary. What is in it at the beginning?
      2. A node that is used several times gets a gradient from each use. Which one is dL/d(node)?
      3. The gradients that node.backward returns are borrowed: it may return one array for two inputs. What happens to
         the second input if you add to the array of the first in place, with +=?
      4. x.grad must be an array of its own. Where must you copy? And if x.grad is not None, what is added to what?
    """
    raise NotImplementedError("not written yet")
