import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from gm.data.prefetch import Prefetcher, ahead, for_each


@pytest.mark.parametrize("workers", [1, 4])
def test_results_come_in_order_whatever_takes_longest(workers):
    def work(item):
        time.sleep(0.02 if item % 3 == 0 else 0)
        return item

    with ThreadPoolExecutor(workers) as pool:
        assert list(ahead(pool, work, range(20), 6)) == list(range(20))


@pytest.mark.parametrize("count", [0, 1, 64, 65, 200])
def test_chunks_lose_nothing(count):
    assert for_each(str, range(count), 3) == [str(item) for item in range(count)]


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
