"""The command line: what works without a model, exit codes, and Ctrl-C in a conversation from a pipe."""
import json, os, signal, subprocess, sys, time

import pytest

from sleeping_llm.cli import main
from sleeping_llm.facts import Fact
from sleeping_llm.ledger import Ledger

@pytest.fixture
def home(tmp_path):
    with Ledger.open(tmp_path/'home') as L: L.add_fact(Fact('I', 'lives in', 'Porto'), source='a test')
    return tmp_path/'home'

def run(capsys, *argv):
    code = main([*map(str, argv)])
    out, err = capsys.readouterr()
    return code, out, err

def test_facts_export_and_doctor_need_no_model(home, tmp_path, capsys):
    assert json.loads(run(capsys, 'facts', '--home', home, '--json')[1])[0]['object'] == 'Porto'
    code, out, _ = run(capsys, 'export', tmp_path/'all', '--facts-only', '--home', home, '--json')
    assert code == 0 and json.loads(out)['facts'] == 1 and oct((tmp_path/'all').stat().st_mode & 0o777) == '0o600'
    code, _, err = run(capsys, 'export', tmp_path/'all', '--home', home)
    assert code == 1 and 'exists already' in err and err.count('\n') == 1
    assert run(capsys, 'doctor', '--home', home)[:2] == (0, 'all is well\n')
    (home/'ledger.sqlite').write_bytes(b'')
    assert run(capsys, 'facts', '--home', home)[0] == 1
    assert run(capsys, 'doctor', '--home', home)[0] == 1
    code, out, _ = run(capsys, 'doctor', '--home', home, '--repair', '--json')
    assert code == 0 and len(json.loads(out)['done']) == 1 and json.loads(out)['wrong'] == []
    assert run(capsys, 'doctor', '--home', tmp_path/'nowhere')[0] == 1

@pytest.mark.parametrize('argv', [['dance'], ['ask'], ['export'], ['import'], ['forget', 'x'], ['doctor', 'x'], ['--home'], ['remember', 'a', 'b']])
def test_usage_errors_end_with_2(argv, capsys):
    with pytest.raises(SystemExit) as e: main(argv)
    assert e.value.code == 2 and capsys.readouterr().out == ''

@pytest.mark.skipif(os.name == 'nt', reason='needs signals')
def test_ctrl_c_stops_a_reply_not_the_program(tmp_path):
    code = 'import sys; from sleeping_llm.cli import main; sys.exit(main())'
    p = subprocess.Popen([sys.executable, '-c', code, '--home', str(tmp_path/'home')], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1,
                         preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))   # a shell's background jobs start with Ctrl-C ignored
    try:
        p.stdin.write('Tell me a very long story about the sea.\n'); p.stdin.flush()
        first = p.stdout.read(1)                       # the reply has begun
        p.send_signal(signal.SIGINT)
        time.sleep(.5)
        out, err = p.communicate('/help\n', timeout=60)
    finally: p.kill()
    assert first and p.returncode == 0 and '(stopped)' in err and '/quit' in out and 'Traceback' not in err
