"""Dataclasses that are pytrees."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax._pytree import pytree, static


@pytree
class Node:
    positional = ("first",)

    first: object
    kind: str = static("a")
    second: object = None
    number: float = 1.0


@pytree
class Child(Node):
    third: object = 3.0


def square(x):
    return x * x


def test_construction():
    node = Node(1.0, kind="b", number=2.0)
    assert (node.first, node.kind, node.second, node.number) == (1.0, "b", None, 2.0)
    assert Node(first=1.0).first == 1.0
    with pytest.raises(TypeError):
        Node(1.0, "b")
    with pytest.raises(TypeError):
        Node()
    with pytest.raises(dataclasses.FrozenInstanceError):
        node.number = 3.0
    assert dataclasses.replace(node, number=5.0).number == 5.0


def test_leaves_and_statics():
    node = Node(jnp.ones(2), kind="b", second={"x": 2.0})
    assert len(jax.tree.leaves(node)) == 3
    back = jax.tree.map(lambda x: x, node)
    assert back.kind == "b"
    assert back.second == {"x": 2.0}
    other = dataclasses.replace(node, kind="c")
    assert jax.tree.structure(node) != jax.tree.structure(other)
    assert jax.tree.structure(node) == jax.tree.structure(dataclasses.replace(node, number=7.0))
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(node)]
    assert names == [".first", ".second['x']", ".number"]


def test_plain_functions_are_static_and_come_back():
    for function in (square, functools.partial(jnp.multiply, 2.0), jax.jit(square), np.sin):
        node = Node(function, second=4.0)
        leaves, structure = jax.tree.flatten(node)
        assert leaves == [4.0, 1.0]
        back = jax.tree.unflatten(structure, [8.0, 2.0])
        assert back.first is function
        assert back.second == 8.0
    assert jax.tree.structure(Node(square)) == jax.tree.structure(Node(square))
    assert jax.tree.structure(Node(square)) != jax.tree.structure(Node(lambda x: x))


def test_callable_pytrees_are_children():
    inner = jax.tree_util.Partial(square, jnp.ones(3))
    assert len(jax.tree.leaves(Node(inner))) == 2
    outer = Node(Node(square, number=5.0))
    assert jax.tree.leaves(outer) == [5.0, 1.0]
    assert jax.tree.map(lambda x: 2 * x, outer).first.first is square


def test_inheritance():
    child = Child(1.0, third=4.0, kind="z")
    assert jax.tree.leaves(child) == [1.0, 1.0, 4.0]
    assert isinstance(jax.tree.map(lambda x: x, child), Child)


def test_no_retrace_for_new_leaves_and_one_for_new_statics():
    traces = []

    @jax.jit
    def run(node):
        traces.append(node.kind)
        return node.first(node.number)

    assert float(run(Node(square, number=3.0))) == 9
    assert float(run(Node(square, number=4.0))) == 16
    assert traces == ["a"]
    run(Node(square, number=4.0, kind="b"))
    assert traces == ["a", "b"]


def test_vmap_and_grad():
    nodes = Node(jnp.arange(3.0), number=jnp.arange(3.0))
    np.testing.assert_array_equal(jax.vmap(lambda n: n.first * n.number)(nodes), [0, 1, 4])
    slope = jax.grad(lambda n: n.first * n.number**2)(Node(2.0, number=3.0))
    assert (float(slope.first), float(slope.number), slope.kind) == (9.0, 12.0, "a")


def test_equal_nodes_of_constants_are_equal_keys():
    assert Node(1.0) == Node(1.0)
    assert len({Node(1.0), Node(1.0), Node(2.0)}) == 2
