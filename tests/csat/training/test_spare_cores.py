from csat.training.spare_cores import LOOK_EVERY_S, PATIENCE, SpareCores


class Machine:
    """A node whose steps take as long as `rate` says; time passes only while it works."""

    def __init__(self, rate, idle, *, most=2):
        self.now, self.rate, self.idle = 0.0, rate, idle
        self.cores = SpareCores(
            1, most, idle_cores=lambda: self.idle(self.threads), set_threads=self._set, clock=lambda: self.now
        )
        self.threads, self.history = 1, []

    def _set(self, threads):
        self.threads = threads

    def work(self, looks, *, waiting=0.0):
        for _ in range(looks):
            for _ in range(4):
                self.now += LOOK_EVERY_S / 4
                busy_s = LOOK_EVERY_S / 4 * (1 - waiting)
                self.cores.after_step(self.rate(self.threads) * busy_s, busy_s)
            self.history.append(self.threads)
        return self


def test_a_core_that_nobody_uses_is_used():
    machine = Machine(rate=lambda threads: 80 * threads**0.5, idle=lambda threads: 2.0 - threads).work(5)
    assert machine.history == [2] * 5


def test_many_cores_are_tried_step_by_step_as_long_as_it_pays():
    machine = Machine(rate=lambda threads: min(threads, 4), idle=lambda threads: 16.0 - threads, most=16).work(8)
    assert machine.history[:2] == [2, 2] and max(machine.history) == 8 and machine.history[-1] == 4


def test_threads_that_do_not_pay_are_taken_back_and_not_tried_at_once_again():
    machine = Machine(rate=lambda threads: 80.0, idle=lambda threads: 1.0).work(5 * PATIENCE)
    tries = [look for look, threads in enumerate(machine.history) if threads == 2]
    assert tries == [0, PATIENCE + 2, 3 * PATIENCE + 4]


def test_who_waits_for_rows_needs_no_core():
    assert set(Machine(rate=lambda threads: 80.0 * threads, idle=lambda threads: 1.0).work(9, waiting=0.3).history) == {1}


def test_cores_that_others_use_are_left_to_them():
    assert set(Machine(rate=lambda threads: 80.0 * threads, idle=lambda threads: 0.3).work(9).history) == {1}


def test_a_core_is_given_back_when_others_come_to_need_it():
    machine = Machine(rate=lambda threads: 80.0 * threads, idle=lambda threads: 2.0 - threads).work(4)
    machine.rate, machine.idle = lambda threads: 80.0 if threads == 1 else 45.0, lambda threads: 0.0
    assert machine.work(4).history == [2, 2, 2, 2, 1, 1, 1, 1]


def test_it_looks_at_this_machine_and_at_torch():
    import torch

    before = torch.get_num_threads()
    try:
        cores = SpareCores(1, 2)
        assert 0 <= cores._idle_cores() <= (torch.multiprocessing.cpu_count() + 0.5)
        cores._use(2)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
