"""Settings with nothing left open."""

from dataclasses import asdict

from pipeline.settings.config import LEARNING_RATES, Config
from pipeline.settings.resolved import resolve


def test_what_is_left_open_follows_the_data_the_model_and_other_settings():
    assert [resolve(Config(), n_rows, 4).batch_size for n_rows in (1, 15, 16, 1000, 6350, 10**6)] == [
        *(1, 15, 16, 20, 127, 128)
    ]
    assert [resolve(Config(), 100, n_inputs).n_features for n_inputs in (2, 3, 127, 128, 784)] == [1, 1, 63, 64, 64]
    assert resolve(Config(), 100, 784, 7).n_features == 7
    for rule, rate in LEARNING_RATES.items():
        assert resolve(Config(optimizer=rule), 100, 4).learning_rate == rate


def test_what_is_set_stays_as_it_is():
    config = Config(n_features=3, batch_size=17, learning_rate=0.5, epochs=7, carry=("a/b",))
    assert asdict(resolve(config, 100, 4, 2)) == asdict(config)
    assert list(asdict(resolve(config, 100, 4))) == list(asdict(config)), "in the order of --help"
