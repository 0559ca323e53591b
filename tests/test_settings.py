"Settings under arbitrary input: what is written is read back, and nothing but `SettingsError` comes out."
from pathlib import Path

import pytest
from hypothesis import given, settings as hyp, strategies as st, HealthCheck

from sleeping_llm.settings import PRESETS, Settings, SettingsError

plain = hyp(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
text = st.text(st.characters(exclude_categories=('Cs', 'Cc')), max_size=30)
layers = st.sets(st.integers(0, 200), min_size=1, max_size=12).map(sorted)
falling = st.lists(st.floats(0, 1), max_size=4).map(lambda x: [1.0] + sorted(x, reverse=True))
valid = st.fixed_dictionaries({}, optional=dict(
    model=st.fixed_dictionaries(dict(preset=st.sampled_from(list(PRESETS)), name=text)),
    memit=st.fixed_dictionaries({}, optional=dict(target_layers=layers, v_lr=st.floats(1e-6, 100), v_steps=st.integers(1, 10_000))),
    consolidation=st.fixed_dictionaries({}, optional=dict(enabled=st.booleans(), scale_schedule=falling)),
    sleep=st.fixed_dictionaries({}, optional=dict(identity=st.lists(text, max_size=3),
        maintenance=st.fixed_dictionaries({}, optional=dict(max_refresh_per_cycle=st.integers(0, 100))))),
    paths=st.fixed_dictionaries({}, optional=dict(cache=text))))
anything = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.binary(max_size=4),
                        lambda x: st.lists(x, max_size=3) | st.dictionaries(st.sampled_from(['model', 'memit', 'sleep', 'maintenance', 'v_lr', 'preset', 'x', 'sleep.maintenance', '']), x, max_size=3), max_leaves=8)


@plain
@given(valid)
def test_saved_settings_are_read_back(tmp_path, data):
    s = Settings.load(data)
    assert Settings.load(s.save(tmp_path / 'settings.ini')) == s
    assert s.replace() == s


@plain
@given(anything)
def test_any_data_gives_settings_or_a_settings_error(data):
    try: assert isinstance(Settings.load(data), Settings)
    except SettingsError as e: assert str(e)


@plain
@given(st.binary(max_size=60) | st.text(max_size=60).map(lambda t: t.encode('utf-8', 'surrogatepass'))
       | st.text(max_size=40).map(lambda t: f'[memit]\nv_lr = {t}\n'.encode('utf-8', 'surrogatepass')))
def test_any_file_gives_settings_or_a_settings_error(tmp_path, content):
    path = tmp_path / 'settings.ini'
    path.write_bytes(content)
    try: assert isinstance(Settings.load(path), Settings)
    except SettingsError as e: assert str(e)


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = Settings().save(tmp_path / 'settings.ini')
    before = path.read_bytes()
    monkeypatch.setattr('os.replace', lambda *a: (_ for _ in ()).throw(OSError('disk')))
    with pytest.raises(OSError, match='disk'): Settings.load('seeds').save(path)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ['settings.ini']


def test_the_repository_file_is_the_defaults():
    assert (Path(__file__).parent.parent / 'settings.ini').read_text() == Settings().to_ini()
