"""Tests spread over processes, of which any may die: it costs the test that it ran, and the others are still run.

pytest-xdist 3.8.0 hands a dead process's finished groups and its deadly test to the next one, and can then fail or
wait for ever (pytest-dev/pytest-xdist#1189, #1323, #1327, #1371). A version with all of them mended needs none of this.
"""

from functools import cache

from xdist.scheduler import LoadScopeScheduling


class Spread(LoadScopeScheduling):
    """A group of tests runs in one process; what is left of it when the process dies runs in another.

    Files whose tests are marked `ray` are one group: the session's cluster is started once, and clusters come one after the
    other. Any other file is a group of its own. (Marks cannot say so: pytest-xdist 3.8.0 writes groups to where pytest 9.2 no
    longer reads a name.)
    """

    def _split_scope(self, nodeid):
        file = nodeid.partition("::")[0]
        return "ray" if _takes_ray(self.config.rootpath / file) else file

    def remove_node(self, node):
        """Take over from a process that has ended; the test that it died of, if it died."""
        groups = self.assigned_work.pop(node)
        left = {name: [test for test, is_done in tests.items() if not is_done] for name, tests in groups.items()}
        died_of = next((test for tests in left.values() for test in tests), None)
        for name, tests in reversed(left.items()):
            if again := dict.fromkeys((test for test in tests if test != died_of), False):
                self.workqueue[name] = again
                self.workqueue.move_to_end(name, last=False)
        for other in self.assigned_work:
            self._reschedule(other)
        return died_of

    def _reschedule(self, node):
        if node not in self.registered_collections:
            return  # it collects, and is looked at again then
        # A process waits with a test until it knows the next one, or that there is none.
        while self.workqueue and not node.shutting_down and self._pending_of(self.assigned_work[node]) <= 2:
            self._assign_work_unit(node)
        if not self.workqueue:
            node.shutdown()


@cache
def _takes_ray(file):
    return "mark.ray" in file.read_text()
