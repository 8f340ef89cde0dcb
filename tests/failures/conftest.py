"""Runs in processes of their own, as the tests of the verbs have them."""

from tests.workflows.conftest import run_alone  # noqa: F401 (a fixture)
