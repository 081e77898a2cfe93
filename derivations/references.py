"""The literature that derivations rest on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["article", "inproceedings", "book", "techreport", "misc"]


@dataclass(frozen=True)
class Reference:
    """A published work; `pages` and `link` (a DOI, or an arXiv number) where there is one."""

    key: str
    kind: Kind
    authors: str
    title: str
    venue: str
    year: int
    pages: str = ""
    link: str = ""


@dataclass(frozen=True)
class Citation:
    """A place in a published work: an equation number where we are certain of it, else the section."""

    reference: Reference
    where: str

    def __str__(self) -> str:
        work = self.reference
        return f"{work.authors}, {work.title}, {work.venue} ({work.year}), {self.where}"


_WORKS = (
    Reference(
        "arora2019",
        "inproceedings",
        "S. Arora, Z. Li, K. Lyu",
        "Theoretical Analysis of Auto Rate-Tuning by Batch Normalization",
        "ICLR",
        2019,
        link="1812.03981",
    ),
    Reference("cho2009", "inproceedings", "Y. Cho, L. K. Saul", "Kernel Methods for Deep Learning", "NIPS", 2009),
    Reference(
        "clevert2016",
        "inproceedings",
        "D.-A. Clevert, T. Unterthiner, S. Hochreiter",
        "Fast and Accurate Deep Network Learning by Exponential Linear Units (ELUs)",
        "ICLR",
        2016,
        link="1511.07289",
    ),
    Reference("david2003", "book", "H. A. David, H. N. Nagaraja", "Order Statistics, 3rd edition", "Wiley", 2003),
    Reference(
        "desmith2020",
        "inproceedings",
        "S. De, S. L. Smith",
        "Batch Normalization Biases Residual Blocks Towards the Identity Function in Deep Networks",
        "NeurIPS",
        2020,
        link="2002.10444",
    ),
    Reference(
        "elfwing2018",
        "article",
        "S. Elfwing, E. Uchibe, K. Doya",
        "Sigmoid-weighted linear units for neural network function approximation in reinforcement learning",
        "Neural Networks 107",
        2018,
        pages="3-11",
        link="1702.03118",
    ),
    Reference(
        "glorot2010",
        "inproceedings",
        "X. Glorot, Y. Bengio",
        "Understanding the difficulty of training deep feedforward neural networks",
        "AISTATS",
        2010,
    ),
    Reference("goodfellow2016", "book", "I. Goodfellow, Y. Bengio, A. Courville", "Deep Learning", "MIT Press", 2016),
    Reference(
        "hanin2018",
        "inproceedings",
        "B. Hanin, D. Rolnick",
        "How to Start Training: The Effect of Initialization and Architecture",
        "NeurIPS",
        2018,
        link="1803.01719",
    ),
    Reference(
        "hanin2020",
        "article",
        "B. Hanin, M. Nica",
        "Products of Many Large Random Matrices and Gradients in Deep Neural Networks",
        "Communications in Mathematical Physics 376",
        2020,
        pages="287-322",
        link="1812.05994",
    ),
    Reference(
        "hayou2019",
        "inproceedings",
        "S. Hayou, A. Doucet, J. Rousseau",
        "On the Impact of the Activation Function on Deep Neural Networks Training",
        "ICML",
        2019,
        link="1902.06853",
    ),
    Reference(
        "he2015",
        "inproceedings",
        "K. He, X. Zhang, S. Ren, J. Sun",
        "Delving Deep into Rectifiers: Surpassing Human-Level Performance on ImageNet Classification",
        "ICCV",
        2015,
        link="1502.01852",
    ),
    Reference(
        "he2016",
        "inproceedings",
        "K. He, X. Zhang, S. Ren, J. Sun",
        "Deep Residual Learning for Image Recognition",
        "CVPR",
        2016,
        link="1512.03385",
    ),
    Reference(
        "hendrycks2016",
        "misc",
        "D. Hendrycks, K. Gimpel",
        "Gaussian Error Linear Units (GELUs)",
        "arXiv:1606.08415",
        2016,
        link="1606.08415",
    ),
    Reference(
        "howard2019", "inproceedings", "A. Howard et al.", "Searching for MobileNetV3", "ICCV", 2019, link="1905.02244"
    ),
    Reference(
        "ioffe2015",
        "inproceedings",
        "S. Ioffe, C. Szegedy",
        "Batch Normalization: Accelerating Deep Network Training by Reducing Internal Covariate Shift",
        "ICML",
        2015,
        link="1502.03167",
    ),
    Reference(
        "johnson1994",
        "book",
        "N. L. Johnson, S. Kotz, N. Balakrishnan",
        "Continuous Univariate Distributions, volume 1, 2nd edition",
        "Wiley",
        1994,
    ),
    Reference(
        "klambauer2017",
        "inproceedings",
        "G. Klambauer, T. Unterthiner, A. Mayr, S. Hochreiter",
        "Self-Normalizing Neural Networks",
        "NIPS",
        2017,
        link="1706.02515",
    ),
    Reference(
        "krizhevsky2009",
        "techreport",
        "A. Krizhevsky",
        "Learning Multiple Layers of Features from Tiny Images",
        "University of Toronto",
        2009,
    ),
    Reference(
        "krogh1992",
        "inproceedings",
        "A. Krogh, J. A. Hertz",
        "A Simple Weight Decay Can Improve Generalization",
        "NIPS 4",
        1992,
    ),
    Reference(
        "lam2015",
        "inproceedings",
        "S. K. Lam, A. Pitrou, S. Seibert",
        "Numba: a LLVM-based Python JIT compiler",
        "LLVM Workshop at SC",
        2015,
        link="10.1145/2833157.2833162",
    ),
    Reference(
        "lecun1998",
        "inproceedings",
        "Y. LeCun, L. Bottou, G. B. Orr, K.-R. Müller",
        "Efficient BackProp",
        "Neural Networks: Tricks of the Trade, Springer",
        1998,
    ),
    Reference(
        "liarora2020",
        "inproceedings",
        "Z. Li, S. Arora",
        "An Exponential Learning Rate Schedule for Deep Learning",
        "ICLR",
        2020,
        link="1910.07454",
    ),
    Reference(
        "loshchilov2019",
        "inproceedings",
        "I. Loshchilov, F. Hutter",
        "Decoupled Weight Decay Regularization",
        "ICLR",
        2019,
        link="1711.05101",
    ),
    Reference(
        "maas2013",
        "inproceedings",
        "A. L. Maas, A. Y. Hannun, A. Y. Ng",
        "Rectifier Nonlinearities Improve Neural Network Acoustic Models",
        "ICML workshop",
        2013,
    ),
    Reference(
        "meurer2017",
        "article",
        "A. Meurer et al.",
        "SymPy: symbolic computing in Python",
        "PeerJ Computer Science 3",
        2017,
        pages="e103",
        link="10.7717/peerj-cs.103",
    ),
    Reference(
        "mezzadri2007",
        "article",
        "F. Mezzadri",
        "How to generate random matrices from the classical compact groups",
        "Notices of the AMS 54",
        2007,
        pages="592-604",
        link="math-ph/0609050",
    ),
    Reference(
        "pennington2017",
        "inproceedings",
        "J. Pennington, S. S. Schoenholz, S. Ganguli",
        "Resurrecting the sigmoid in deep learning through dynamical isometry: theory and practice",
        "NIPS",
        2017,
        link="1711.04735",
    ),
    Reference(
        "poole2016",
        "inproceedings",
        "B. Poole, S. Lahiri, M. Raghu, J. Sohl-Dickstein, S. Ganguli",
        "Exponential expressivity in deep neural networks through transient chaos",
        "NIPS",
        2016,
        link="1606.05340",
    ),
    Reference(
        "price1958",
        "article",
        "R. Price",
        "A useful theorem for nonlinear devices having Gaussian inputs",
        "IRE Transactions on Information Theory 4",
        1958,
        pages="69-72",
        link="10.1109/TIT.1958.1057444",
    ),
    Reference(
        "ramachandran2017",
        "misc",
        "P. Ramachandran, B. Zoph, Q. V. Le",
        "Searching for Activation Functions",
        "arXiv:1710.05941",
        2017,
        link="1710.05941",
    ),
    Reference(
        "salmon2011",
        "inproceedings",
        "J. K. Salmon, M. A. Moraes, R. O. Dror, D. E. Shaw",
        "Parallel random numbers: as easy as 1, 2, 3",
        "SC",
        2011,
        link="10.1145/2063384.2063405",
    ),
    Reference(
        "sandler2018",
        "inproceedings",
        "M. Sandler, A. Howard, M. Zhu, A. Zhmoginov, L.-C. Chen",
        "MobileNetV2: Inverted Residuals and Linear Bottlenecks",
        "CVPR",
        2018,
        link="1801.04381",
    ),
    Reference(
        "saxe2014",
        "inproceedings",
        "A. M. Saxe, J. L. McClelland, S. Ganguli",
        "Exact solutions to the nonlinear dynamics of learning in deep linear neural networks",
        "ICLR",
        2014,
        link="1312.6120",
    ),
    Reference(
        "schoenholz2017",
        "inproceedings",
        "S. S. Schoenholz, J. Gilmer, S. Ganguli, J. Sohl-Dickstein",
        "Deep Information Propagation",
        "ICLR",
        2017,
        link="1611.01232",
    ),
    Reference(
        "simonyan2015",
        "inproceedings",
        "K. Simonyan, A. Zisserman",
        "Very Deep Convolutional Networks for Large-Scale Image Recognition",
        "ICLR",
        2015,
        link="1409.1556",
    ),
    Reference(
        "stein1981",
        "article",
        "C. M. Stein",
        "Estimation of the mean of a multivariate normal distribution",
        "Annals of Statistics 9",
        1981,
        pages="1135-1151",
        link="10.1214/aos/1176345632",
    ),
    Reference(
        "trefethen2008",
        "article",
        "L. N. Trefethen",
        "Is Gauss Quadrature Better than Clenshaw-Curtis?",
        "SIAM Review 50",
        2008,
        pages="67-87",
        link="10.1137/060659831",
    ),
    Reference(
        "tsuchida2021",
        "inproceedings",
        "R. Tsuchida, T. Pearce, C. van der Heide, F. Roosta, M. Gallagher",
        "Avoiding Kernel Fixed Points: Computing with ELU and GELU Infinite Networks",
        "AAAI",
        2021,
        link="2002.08517",
    ),
    Reference(
        "vanlaarhoven2017",
        "misc",
        "T. van Laarhoven",
        "L2 Regularization versus Batch and Weight Normalization",
        "arXiv:1706.05350",
        2017,
        link="1706.05350",
    ),
    Reference(
        "wan2021",
        "inproceedings",
        "R. Wan, Z. Zhu, X. Zhang, J. Sun",
        "Spherical Motion Dynamics: Learning Dynamics of Normalized Neural Network using SGD and Weight Decay",
        "NeurIPS",
        2021,
        link="2006.08419",
    ),
    Reference("williams1997", "inproceedings", "C. K. I. Williams", "Computing with infinite networks", "NIPS 9", 1997),
    Reference(
        "xiao2018",
        "inproceedings",
        "L. Xiao, Y. Bahri, J. Sohl-Dickstein, S. S. Schoenholz, J. Pennington",
        "Dynamical Isometry and a Mean Field Theory of CNNs: How to Train 10,000-Layer Vanilla Convolutional"
        " Neural Networks",
        "ICML",
        2018,
        link="1806.05393",
    ),
    Reference(
        "yang2019",
        "inproceedings",
        "G. Yang, J. Pennington, V. Rao, J. Sohl-Dickstein, S. S. Schoenholz",
        "A Mean Field Theory of Batch Normalization",
        "ICLR",
        2019,
        link="1902.08129",
    ),
    Reference(
        "yangschoenholz2017",
        "inproceedings",
        "G. Yang, S. S. Schoenholz",
        "Mean Field Residual Networks: On the Edge of Chaos",
        "NIPS",
        2017,
        link="1712.08969",
    ),
    Reference(
        "zhang2019",
        "inproceedings",
        "H. Zhang, Y. N. Dauphin, T. Ma",
        "Fixup Initialization: Residual Learning Without Normalization",
        "ICLR",
        2019,
        link="1901.09321",
    ),
)
REFERENCES: dict[str, Reference] = {work.key: work for work in _WORKS}


def cite(key: str, where: str) -> Citation:
    """Return a citation of a known work."""
    return Citation(REFERENCES[key], where)
