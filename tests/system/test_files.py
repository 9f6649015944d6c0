import hashlib

import pytest

from fsa_seg.system import files
from fsa_seg.system.files import hash_file


@pytest.mark.parametrize('algorithm', ['sha256', 'md5'])
def test_a_file_is_hashed_block_by_block(tmp_path, monkeypatch, algorithm):
    """The digest is that of the whole content, and the progress function gets the bytes of each block."""
    content, sizes = bytes(range(250)), []
    (tmp_path / 'file').write_bytes(content)
    monkeypatch.setattr(files, 'BLOCK', 100)
    digest = hash_file(str(tmp_path / 'file'), algorithm, sizes.append)
    assert digest == hashlib.new(algorithm, content).hexdigest()
    assert sizes == [100, 100, 50]
    (tmp_path / 'empty').write_bytes(b'')
    assert hash_file(str(tmp_path / 'empty'), algorithm) == hashlib.new(algorithm).hexdigest()
