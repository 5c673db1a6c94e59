"""What the pages and ``afterfit cite`` tell to cite, where no method of ours carries it."""

CONNECTIVITY = (
    "Kim, Park, Kim, Yang (2023), Scale-invariant Bayesian neural networks with connectivity "
    "tangent kernel, ICLR, arXiv:2209.15208"
)

RECTIFICATION = (
    "Song, Kim, Yang (2023), RGE: A repulsive graph rectification for node classification via "
    "influence, ICML, PMLR 202:32331"
)
