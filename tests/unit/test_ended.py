"""Which jobs have ended, by the names of their results."""

from hashlib import sha256

from farm.dispatcher.ended import Ended


def job(number):
    return sha256(b"%d" % number).hexdigest()[:32]


def test_every_result_is_found_and_nothing_else():
    names = sorted(f"{job(number)}.{number % 3}.json" for number in range(2000))
    ended = Ended(names)
    assert len(ended) == 2000
    assert all(ended.has(job(number), number % 3) for number in range(2000))
    assert not any(ended.has(job(number), (number + 1) % 3) for number in range(2000))
    assert not any(ended.has(job(number), 0) for number in range(2000, 4000))


def test_generations_are_told_apart_in_whatever_order_they_are_listed():
    names = sorted(f"{job(number)}.{generation}.json" for number in range(3) for generation in (0, 1, 2, 10, 11, 300))
    ended = Ended(names)
    for generation in (0, 1, 2, 10, 11, 300):
        assert ended.has(job(1), generation)
    assert not ended.has(job(1), 3) and not ended.has(job(1), 100)


def test_what_is_no_result_is_passed_over():
    ended = Ended(["note.txt", f"{job(0)}.json", f"{job(1)}.0.json.tmp", "a.0.json", f"{job(2)}.0.json"])
    assert len(ended) == 1
    assert ended.has(job(2), 0) and not ended.has("a", 0) and not ended.has(job(0), 0)


def test_of_nothing_there_is_nothing():
    assert not Ended([]).has(job(0), 0)
