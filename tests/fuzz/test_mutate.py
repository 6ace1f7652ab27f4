from fuzz.mutate import mutate

DATA = bytes(range(256)) * 8


def test_a_case_is_a_function_of_seed_and_number():
    cases = [mutate(DATA, 3, number) for number in range(300)]
    assert cases == [mutate(DATA, 3, number) for number in range(300)]
    assert len(set(cases)) > 280
    assert cases != [mutate(DATA, 4, number) for number in range(300)]


def test_nearly_every_case_differs_from_the_original():
    """A field may happen to be overwritten by what it holds."""
    assert sum(mutate(DATA, 0, number) == DATA for number in range(300)) < 30


def test_fields_are_hit_and_lengths_change():
    fields = [(1000, 12)]
    cases = [mutate(DATA, 0, number, fields) for number in range(300)]
    assert sum(case[1000:1012] != DATA[1000:1012] for case in cases) > 200
    assert any(len(case) < len(DATA) for case in cases) and any(len(case) > len(DATA) for case in cases)
    assert any(len(case) == len(DATA) and case != DATA for case in cases)


def test_short_files():
    assert all(isinstance(mutate(data, 0, number), bytes) for data in (b"", b"x") for number in range(100))
