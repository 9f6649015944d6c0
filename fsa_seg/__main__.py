"""`python -m fsa_seg TOOL` is `fsa-seg TOOL`; so is `torchrun -m fsa_seg test CONFIG --launcher pytorch`."""

from fsa_seg.cli.main import main

if __name__ == '__main__':
    main()
