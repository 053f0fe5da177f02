"""Expected readings were made by running the filters and the metric of lm-eval 0.4.13."""

import pytest

from sempa_mlx.evaluation.worked import flexible_number, same_number, strict_number


@pytest.mark.parametrize(
    ("text", "strict", "flexible"),
    [
        (" There are 21 - 15 = 6. The answer is 6.", "6", "6."),
        (" The answer is 1,234.50.", "1,234.50", "1,234.50."),
        (" The answer is 18", "1", "18"),  # something has to follow the number
        (" The answer is 18\n", "1", "18"),
        ("The answer is -3. The answer is 4.", "-3.", "4."),
        (" The answer is $5.", "[invalid]", "$5."),
        (" So 5 dollars, or $7.25.", "[invalid]", "$7.25."),
        (" none", "[invalid]", "[invalid]"),
        (" it is 9", "[invalid]", "9"),
        (" x = 3 ... ", "[invalid]", "..."),
        ("", "[invalid]", "[invalid]"),
        ("The answer is 10%.", "10", "10"),
    ],
)
def test_numbers_are_read_as_the_harness_reads_them(text, strict, flexible):
    assert (strict_number(text), flexible_number(text)) == (strict, flexible)


@pytest.mark.parametrize(
    ("found", "truth", "same"),
    [
        ("6", "6", True),
        ("1,234", "1234", True),
        ("$5.", "5", True),
        ("5.0", "5", False),
        ("7..", "7.", False),
        ("[invalid]", "6", False),
        ("a #### 8", "8", True),
        ("-3", "3", False),
    ],
)
def test_numbers_are_compared_as_the_harness_compares_them(found, truth, same):
    assert same_number(found, truth) is same
