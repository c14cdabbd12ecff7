import gc
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from gm.data import prefetch
from gm.data.prefetch import Prefetcher, ahead, for_each, uncollected


@pytest.mark.parametrize("workers", [1, 4])
def test_results_come_in_order_whatever_takes_longest(workers):
    def work(item):
        time.sleep(0.02 if item % 3 == 0 else 0)
        return item

    with ThreadPoolExecutor(workers) as pool:
        assert list(ahead(pool, work, range(20), 6)) == list(range(20))


@pytest.mark.parametrize("count", [0, 1, 64, 65, 200])
@pytest.mark.parametrize("quick", [-1, 1])
def test_chunks_lose_nothing(count, quick, monkeypatch):
    monkeypatch.setattr(prefetch, "QUICK", quick)
    monkeypatch.setattr(prefetch, "ROUND", 2)
    assert for_each(str, range(count), 3) == [str(item) for item in range(count)]


@pytest.mark.parametrize("quick", [-1, 1000])
def test_only_work_that_is_not_quick_is_done_by_threads(quick, monkeypatch):
    monkeypatch.setattr(prefetch, "QUICK", quick)
    threads = for_each(lambda _: threading.get_ident(), range(200), 3)
    assert (set(threads) == {threading.get_ident()}) == (quick > 0)


def test_work_for_python_is_done_by_threads_where_it_waits():
    def waiting(_):
        time.sleep(0.02)
        return threading.get_ident()

    assert len(set(for_each(waiting, range(9), 3, python=True))) > 2


def test_the_collector_goes_on_afterwards_and_only_where_it_was_on():
    with uncollected():
        assert not gc.isenabled()
        with uncollected():
            pass
        assert not gc.isenabled()
    assert gc.isenabled()


def test_only_so_much_is_begun_ahead():
    begun = []
    with ThreadPoolExecutor(4) as pool:
        results = ahead(pool, begun.append, range(100), 5)
        next(results)
        time.sleep(0.05)
        assert len(begun) <= 5


def test_items_come_in_order_and_then_it_ends():
    assert list(Prefetcher(iter(range(10)), 2)) == list(range(10))


def test_errors_come_out_where_the_items_are_taken():
    def source():
        yield 1
        raise ValueError("broken")

    items = Prefetcher(source(), 2)
    assert next(items) == 1
    with pytest.raises(ValueError, match="broken"):
        next(items)
    with pytest.raises(StopIteration):
        next(items)


def test_closing_ends_thread_and_source():
    ended = threading.Event()

    def source():
        try:
            while True:
                yield 1
        finally:
            ended.set()

    before = threading.active_count()
    items = Prefetcher(source(), 2)
    next(items)
    items.close()
    assert ended.is_set()
    assert threading.active_count() == before
    items.close()
