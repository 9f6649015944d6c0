from setuptools import find_packages, setup

with open('requirements.txt', encoding='utf-8') as f:
    requirements = [line.split('#')[0].strip() for line in f]

# what tools/prepare_dataset.py reads annotations with; cityscapesscripts 2 needs PyPI's `typing`, which hides Python's
data = ['pycocotools>=2.0.8', 'cityscapesscripts>=1.5,<2', 'scipy>=1.15.3']
setup(
    name='fsa_seg',
    version='0.1.0',
    description='Benchmark suite for training-free open-vocabulary segmentation with CLIP, on MMSegmentation',
    license='Apache-2.0',
    python_requires='>=3.10',
    packages=find_packages(include=['fsa_seg', 'fsa_seg.*']),
    install_requires=[line for line in requirements if line],
    extras_require=dict(data=data, test=['pytest>=7.4', 'pytest-xdist>=3.6.1', 'ruff>=0.17.6,<0.18', *data]),
)
