# NACLIP's published settings without PAMR, the rows that later papers compare with.
_base_ = 'naclip.py'
protocol = dict(name='naclip_plain', default=dict(refinement=None))
