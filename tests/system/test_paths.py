from fsa_seg.system import paths


def test_the_digest_of_the_sources_leaves_out_what_makes_no_number(tmp_path, monkeypatch):
    """A report, a command line and the shipped copies may change; all else counts."""
    monkeypatch.setattr(paths, 'PACKAGE', str(tmp_path))

    def digest(path, text):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
        return paths.sources_digest.__wrapped__()

    first = digest('evaluation/metric.py', 'a')
    for path in ('cli/test.py', 'shipped/configs/a.py', 'evaluation/report/page.py', 'evaluation/report/page.html'):
        assert digest(path, 'a') == digest(path, 'ab') == first, path
    for path in ('evaluation/metric.py', 'evaluation/reports.py', 'evaluation/report_2/a.py', 'report/page.py'):
        before, after = digest(path, 'abc'), digest(path, 'abcd')
        assert before != after, path
