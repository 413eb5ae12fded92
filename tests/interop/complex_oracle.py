"""Write tests/data/complex_points.txt: complex functions at their special points and beside them.

    pip install mpmath==1.4.1
    python tests/interop/complex_oracle.py > tests/data/complex_points.txt

Each component takes 0, the least subnormal, 1 and both its neighbours, 2, the greatest float, infinity and NaN, with both signs. The imaginary
part's sign bit is clear in all rows: the test adds the conjugates.

Finite operands are computed with 7000 bits. A zero is replaced by 2^-1300 with its sign, and a component of the result that goes with it is a
zero: so the sides of branch cuts and the signs of zeros follow as limits. Poles, infinities and NaN follow the rules of the Python Array API standard 2024.12,
which are those of C99, Annex G; `asin`, `atan`, `sin`, `cos` and `tan` follow from the hyperbolic functions.
"""

import struct
import sys
from itertools import product

from mpmath import mp, mpc, mpf

mp.prec = 7000
INF, NAN = float("inf"), float("nan")
PI = "pi"
EPSILON = mpf(2) ** -1300
LN_2, LN_10 = mp.log(2), mp.log(10)
CONSTANTS = {"pi": mp.pi, "pi/2": mp.pi / 2, "pi/4": mp.pi / 4, "3pi/4": 3 * mp.pi / 4}

FINITE = {
    "acos": mp.acos, "acosh": mp.acosh, "asin": mp.asin, "asinh": mp.asinh, "atan": mp.atan, "atanh": mp.atanh, "cos": mp.cos, "cosh": mp.cosh,
    "exp": mp.exp, "expm1": lambda z: mp.exp(z) - 1, "log": mp.log, "log10": lambda z: mp.log(z) / LN_10, "log1p": lambda z: mp.log(1 + z),
    "log2": lambda z: mp.log(z) / LN_2, "reciprocal": lambda z: 1 / z, "sin": mp.sin, "sinh": mp.sinh, "sqrt": mp.sqrt, "square": lambda z: z * z,
    "tan": lambda z: mpc(mp.sin(2 * z.real), mp.sinh(2 * z.imag)) / (mp.cos(2 * z.real) + mp.cosh(2 * z.imag)),
    "tanh": lambda z: mpc(mp.sinh(2 * z.real), mp.sin(2 * z.imag)) / (mp.cosh(2 * z.real) + mp.cos(2 * z.imag)), "sign": lambda z: z / abs(z), "abs": lambda z: mpc(abs(z)),
}

# Operand and result of each rule: `x` is finite, `p` finite and above 0, `n` finite and below 0, `f` finite and not 0, `any` anything;
# a leading `±` leaves the sign open, `cis` stands for (cos b, sin b) times what is before it. The first that fits holds.
RULES = {
    "acos": "x inf pi/2 -inf; 0 nan pi/2 nan; x nan nan nan; -inf p pi -inf; -inf +0 pi -inf; inf p +0 -inf; inf +0 +0 -inf; -inf inf 3pi/4 -inf; inf inf pi/4 -inf;"
    "inf nan nan ±inf; -inf nan nan ±inf; nan x nan nan; nan inf nan -inf; nan nan nan nan",
    "acosh": "x inf inf pi/2; 0 nan nan ±pi/2; x nan nan nan; -inf p inf pi; -inf +0 inf pi; inf p inf +0; inf +0 inf +0; -inf inf inf 3pi/4;"
    "inf inf inf pi/4; inf nan inf nan; -inf nan inf nan; nan x nan nan; nan inf inf nan; nan nan nan nan",
    "asinh": "p inf inf pi/2; +0 inf inf pi/2; x nan nan nan; inf p inf +0; inf +0 inf +0; inf inf inf pi/4; inf nan inf nan; nan +0 nan +0;"
    "nan f nan nan; nan inf ±inf nan; nan nan nan nan",
    "atanh": "+0 nan +0 nan; 1 +0 inf +0; p inf +0 pi/2; +0 inf +0 pi/2; f nan nan nan; inf p +0 pi/2; inf +0 +0 pi/2; inf inf +0 pi/2; inf nan +0 nan;"
    "nan x nan nan; nan inf ±0 pi/2; nan nan nan nan",
    "cosh": "0 inf nan ±0; 0 nan nan ±0; f inf nan nan; f nan nan nan; inf +0 inf +0; inf f inf cis; inf inf ±inf nan; inf nan inf nan; nan +0 nan ±0;"
    "nan f nan nan; nan inf nan nan; nan nan nan nan",
    "exp": "x inf nan nan; x nan nan nan; inf +0 inf +0; -inf +0 +0 +0; -inf f 0 cis; inf f inf cis; -inf inf ±0 ±0; inf inf ±inf nan; -inf nan ±0 ±0;"
    "inf nan ±inf nan; nan +0 nan +0; nan any nan nan",
    "expm1": "x inf nan nan; x nan nan nan; inf +0 inf +0; -inf +0 -1 +0; -inf f expm1 cis; inf f inf cis; -inf inf -1 ±0; inf inf ±inf nan; -inf nan -1 ±0;"
    "inf nan ±inf nan; nan +0 nan +0; nan any nan nan",
    "log": "-0 +0 -inf pi; +0 +0 -inf +0; x inf inf pi/2; x nan nan nan; -inf p inf pi; -inf +0 inf pi; inf p inf +0; inf +0 inf +0; -inf inf inf 3pi/4;"
    "inf inf inf pi/4; inf nan inf nan; -inf nan inf nan; nan x nan nan; nan inf inf nan; nan nan nan nan",
    "log1p": "-1 +0 -inf +0; x inf inf pi/2; x nan nan nan; -inf p inf pi; -inf +0 inf pi; inf p inf +0; inf +0 inf +0; -inf inf inf 3pi/4;"
    "inf inf inf pi/4; inf nan inf nan; -inf nan inf nan; nan x nan nan; nan inf inf nan; nan nan nan nan",
    "sinh": "+0 inf ±0 nan; +0 nan ±0 nan; f inf nan nan; f nan nan nan; inf +0 inf +0; inf f inf cis; inf inf ±inf nan; inf nan ±inf nan; nan +0 nan +0;"
    "nan any nan nan",
    "sqrt": "any inf inf inf; x nan nan nan; -inf p +0 inf; -inf +0 +0 inf; inf p inf +0; inf +0 inf +0; -inf nan nan ±inf; inf nan inf nan; nan any nan nan",
    "tanh": "+0 inf +0 nan; +0 nan +0 nan; f inf nan nan; f nan nan nan; inf p 1 +0; inf +0 1 +0; inf inf 1 ±0; inf nan 1 ±0; nan +0 nan +0; nan any nan nan",
    "sign": "0 0 +0 ±0; nan any nan nan; any nan nan nan",
    "abs": "inf any inf +0; -inf any inf +0; any inf inf +0; nan any nan +0; any nan nan +0",
}
# f(-z) = -f(z), and f(-z) = f(z).
ODD, EVEN = {"asinh", "atanh", "sinh", "tanh"}, {"cosh"}
# Turned: asin z = -i asinh(iz), and so on.
TURNED = {"asin": "asinh", "atan": "atanh", "sin": "sinh", "tan": "tanh"}
SCALED = {"log2": LN_2, "log10": LN_10}


def negative(text):
    if text in ("nan", "any") or text.startswith("±"):
        return text
    return text[1:] if text.startswith("-") else "-" + text.lstrip("+")


def sign_bit(x):
    return struct.pack(">d", x)[0] >> 7


def fits(x, pattern):
    if pattern == "any":
        return True
    if pattern == "nan":
        return x != x
    if x != x:
        return False
    if pattern in ("x", "p", "n", "f"):
        finite = abs(x) != INF
        return finite and {"x": True, "p": x > 0, "n": x < 0, "f": x != 0}[pattern]
    if pattern == "0":
        return x == 0
    if pattern in ("+0", "-0"):
        return x == 0 and sign_bit(x) == (pattern == "-0")
    return x == float(pattern)


def signed(text, x):
    return text if x > 0 else negative(text)


def special(name, a, b):
    """What a rule says, as texts; `None` where no rule fits."""
    if name in TURNED:
        # i z = (-b, a); the result w turned back is (im w, -re w).
        found = special(TURNED[name], -b, a)
        return found and (found[1], negative(found[0]))
    if name == "cos":
        return special("cosh", -b, a)
    if name in SCALED:
        found = special("log", a, b)
        scale = lambda text: text if text in ("nan", "+0", "-0", "inf", "-inf") else f"{text}/{name}"
        return found and tuple(scale(t) for t in found)
    if name not in RULES:
        return None
    for rule in RULES[name].split(";"):
        x, y, re, im = rule.split()
        if name in ("sign", "abs") and fits(a, x) and fits(b, y):
            return re, im
        # The rules hold for conjugates, and for negatives.
        for flip in [False, True] if name in ODD | EVEN else [False]:
            s, t = (-a, -b) if flip else (a, b)
            conjugate = sign_bit(t) and t == t
            t = -t if conjugate else t
            if not fits(s, x) or not fits(t, y):
                continue
            if im == "cis":
                cosine, sine = mp.cos(mpf(t)), mp.sin(mpf(t))
                first = "-1" if re == "expm1" else signed({"inf": "inf", "0": "+0"}[re], cosine)
                second = signed("inf" if re == "inf" else "+0", sine)
            else:
                first = re
                second = im
            second = negative(second) if conjugate else second
            return (negative(first), negative(second)) if flip and name in ODD else (first, second)
    return None


def parts(width):
    one, digits, least = 1.0, (24 if width == 32 else 53), (-149 if width == 32 else -1074)
    greatest = (2 - 2.0 ** (1 - digits)) * 2.0 ** (127 if width == 32 else 1023)
    return [0.0, 2.0**least, one - 2.0**-digits, one, one + 2.0 ** (1 - digits), 2.0, greatest, INF, NAN]


def rounded(x, width):
    """The nearest float, as text."""
    digits, least, most = (24, -149, 128) if width == 32 else (53, -1074, 1024)
    negative_ = x < 0
    x = abs(x)
    if x < mpf(2) ** -1200:
        return "-0.0" if negative_ else "0.0"
    exponent = max(int(mp.floor(mp.log(x, 2))) - digits + 1, least)
    units = int(mp.nint(x / mpf(2) ** exponent))
    if units * mpf(2) ** exponent >= mpf(2) ** most:
        return "-inf" if negative_ else "inf"
    value = float(units * mpf(2) ** exponent)
    return repr(-value if negative_ else value)


def resolve(text, width):
    either = "±" if text.startswith("±") else ""
    text = text.lstrip("±")
    sign = "-" if text.startswith("-") else ""
    text = text.lstrip("+-")
    text, _, scale = text.partition("/log")
    if text in CONSTANTS:
        value = CONSTANTS[text] / SCALED["log" + scale] if scale else CONSTANTS[text]
        return either + sign + rounded(value, width)
    return either + (text if text == "nan" else sign + {"0": "0.0", "1": "1.0"}.get(text, text))


def computed(f, operands, width):
    """The result as texts, of a function of complex numbers given as pairs."""
    side = lambda x, small: small * (-1 if sign_bit(x) else 1) if x == 0 else mpf(x)
    at = lambda small: f(*[mpc(side(a, small), side(b, small)) for a, b in operands])
    w, nearer = at(EPSILON), at(EPSILON / 2)
    zero = lambda far, near: mpf(far > 0 and 1 or -1) * mpf(2) ** -2000 if abs(far) > 1.2 * abs(near) else far
    return rounded(zero(w.real, nearer.real), width), rounded(zero(w.imag, nearer.imag), width)


def main():
    print(__doc__.split("\n\n")[0].replace("Write tests/data/complex_points.txt: c", "# C") + " Written by tests/interop/complex_oracle.py.")
    print("# Columns, separated by tabs: function, dtype, operand, result; ± leaves the sign open, nan is any NaN.")
    for name, width in product(FINITE, (32, 64)):
        magnitudes = parts(width)
        reals = magnitudes + [-x for x in magnitudes if x == x]
        for a, b in product(reals, magnitudes):
            found = special(name, a, b)
            if found:
                found = tuple(resolve(t, width) for t in found)
            elif not (abs(a) < INF and abs(b) < INF):
                continue  # left open
            elif name == "reciprocal" and a == b == 0:
                continue  # left open
            elif name == "square" and not all(x == 0 or 0.5 < abs(x) < 4 for x in (a, b)):
                continue  # The plain formula overflows, or loses everything.
            else:
                found = computed(FINITE[name], [(a, b)], width)
                if name in ("expm1", "log1p") and a == 0 < b < 1e-40:
                    found = "±0.0", found[1]  # A zero and what underflows, with different signs.
            result = found[0] if name == "abs" else f"({found[0]},{found[1]})"
            print(f"{name}\tcomplex{2 * width}\t({a!r},{b!r})\t{result}")
    for width in (32, 64):
        _, _, below, one, above, two, *_ = parts(width)
        bases = [(s * a, z) for s in (1, -1) for a in (below, one, above, two) for z in (0.0, -0.0)]
        bases += [(z, s * a) for s in (1, -1) for a in (below, one, above, two) for z in (0.0, -0.0)] + [(one, one), (-one, above)]
        for x, y in product(bases, [(1.0, 0.0), (2.0, 0.0), (3.0, 0.0), (-1.0, 0.0), (-2.0, 0.0), (0.5, 0.0), (0.0, 1.0), (-0.5, 2.0)]):
            whole = y[1] == 0 and y[0] == int(y[0])
            power = (lambda z, _: z ** int(y[0])) if whole else (lambda z, _: mp.exp(mpc(*y) * mp.log(z)))
            re, im = computed(power, [x, y], width)
            if y[1]:
                # The formula's terms, zeros of different signs.
                re, im = ("±0.0" if float(t) == 0 else t for t in (re, im))
            print(f"pow\tcomplex{2 * width}\t({x[0]!r},{x[1]!r}) ({y[0]!r},{y[1]!r})\t({re},{im})")


if __name__ == "__main__":
    sys.exit(main())
