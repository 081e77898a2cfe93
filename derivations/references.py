"""The literature that derivations rest on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Reference:
    """A published work."""

    key: str
    authors: str
    title: str
    venue: str
    year: int


@dataclass(frozen=True)
class Citation:
    """A place in a published work: an equation number where we are certain of it, else the section."""

    reference: Reference
    where: str

    def __str__(self) -> str:
        work = self.reference
        return f"{work.authors}, {work.title}, {work.venue} ({work.year}), {self.where}"


_WORKS = (
    Reference("cho2009", "Y. Cho, L. K. Saul", "Kernel Methods for Deep Learning", "NIPS", 2009),
    Reference(
        "clevert2016",
        "D.-A. Clevert, T. Unterthiner, S. Hochreiter",
        "Fast and Accurate Deep Network Learning by Exponential Linear Units (ELUs)",
        "ICLR",
        2016,
    ),
    Reference("david2003", "H. A. David, H. N. Nagaraja", "Order Statistics, 3rd edition", "Wiley", 2003),
    Reference(
        "elfwing2018",
        "S. Elfwing, E. Uchibe, K. Doya",
        "Sigmoid-weighted linear units for neural network function approximation in reinforcement learning",
        "Neural Networks 107",
        2018,
    ),
    Reference(
        "glorot2010",
        "X. Glorot, Y. Bengio",
        "Understanding the difficulty of training deep feedforward neural networks",
        "AISTATS",
        2010,
    ),
    Reference("he2015", "K. He, X. Zhang, S. Ren, J. Sun", "Delving Deep into Rectifiers", "ICCV", 2015),
    Reference(
        "he2016", "K. He, X. Zhang, S. Ren, J. Sun", "Deep Residual Learning for Image Recognition", "CVPR", 2016
    ),
    Reference(
        "hendrycks2016", "D. Hendrycks, K. Gimpel", "Gaussian Error Linear Units (GELUs)", "arXiv:1606.08415", 2016
    ),
    Reference("howard2019", "A. Howard et al.", "Searching for MobileNetV3", "ICCV", 2019),
    Reference("ioffe2015", "S. Ioffe, C. Szegedy", "Batch Normalization", "ICML", 2015),
    Reference(
        "johnson1994",
        "N. L. Johnson, S. Kotz, N. Balakrishnan",
        "Continuous Univariate Distributions, volume 1",
        "Wiley",
        1994,
    ),
    Reference(
        "klambauer2017",
        "G. Klambauer, T. Unterthiner, A. Mayr, S. Hochreiter",
        "Self-Normalizing Neural Networks",
        "NIPS",
        2017,
    ),
    Reference(
        "vanlaarhoven2017",
        "T. van Laarhoven",
        "L2 Regularization versus Batch and Weight Normalization",
        "arXiv:1706.05350",
        2017,
    ),
    Reference(
        "lecun1998",
        "Y. LeCun, L. Bottou, G. B. Orr, K.-R. Müller",
        "Efficient BackProp",
        "Neural Networks: Tricks of the Trade, Springer",
        1998,
    ),
    Reference(
        "maas2013",
        "A. L. Maas, A. Y. Hannun, A. Y. Ng",
        "Rectifier Nonlinearities Improve Neural Network Acoustic Models",
        "ICML workshop",
        2013,
    ),
    Reference(
        "poole2016",
        "B. Poole, S. Lahiri, M. Raghu, J. Sohl-Dickstein, S. Ganguli",
        "Exponential expressivity in deep neural networks through transient chaos",
        "NIPS",
        2016,
    ),
    Reference(
        "price1958",
        "R. Price",
        "A useful theorem for nonlinear devices having Gaussian inputs",
        "IRE Transactions on Information Theory 4",
        1958,
    ),
    Reference(
        "ramachandran2017",
        "P. Ramachandran, B. Zoph, Q. V. Le",
        "Searching for Activation Functions",
        "arXiv:1710.05941",
        2017,
    ),
    Reference(
        "sandler2018",
        "M. Sandler, A. Howard, M. Zhu, A. Zhmoginov, L.-C. Chen",
        "MobileNetV2: Inverted Residuals and Linear Bottlenecks",
        "CVPR",
        2018,
    ),
    Reference(
        "schoenholz2017",
        "S. S. Schoenholz, J. Gilmer, S. Ganguli, J. Sohl-Dickstein",
        "Deep Information Propagation",
        "ICLR",
        2017,
    ),
    Reference(
        "stein1981",
        "C. M. Stein",
        "Estimation of the mean of a multivariate normal distribution",
        "Annals of Statistics 9",
        1981,
    ),
    Reference(
        "tsuchida2021",
        "R. Tsuchida, T. Pearce, C. van der Heide, F. Roosta, M. Gallagher",
        "Avoiding Kernel Fixed Points: Computing with ELU and GELU Infinite Networks",
        "AAAI",
        2021,
    ),
    Reference("williams1997", "C. K. I. Williams", "Computing with infinite networks", "NIPS 9", 1997),
    Reference(
        "xiao2018",
        "L. Xiao, Y. Bahri, J. Sohl-Dickstein, S. S. Schoenholz, J. Pennington",
        "Dynamical Isometry and a Mean Field Theory of CNNs",
        "ICML",
        2018,
    ),
    Reference(
        "yang2019",
        "G. Yang, J. Pennington, V. Rao, J. Sohl-Dickstein, S. S. Schoenholz",
        "A Mean Field Theory of Batch Normalization",
        "ICLR",
        2019,
    ),
)
REFERENCES: dict[str, Reference] = {work.key: work for work in _WORKS}


def cite(key: str, where: str) -> Citation:
    """Return a citation of a known work."""
    return Citation(REFERENCES[key], where)
