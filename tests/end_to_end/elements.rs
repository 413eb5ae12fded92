//! Elements of every dtype as one type, with arrays of them that are written by the tests' own
//! writer, computed, and compared.

use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

use freestone::{Array, Bool, Complex64, Complex128, DType, MemoryStore, Serial, Spec};
use freestone_engine::kernels::dispatch;
use freestone_engine::storage::Store;
use ndarray::{ArrayD, IxDyn};
use serde_json::json;

use crate::support::{chunk_files, document};

/// An element in the oracles' representation.
#[derive(Clone, Copy, PartialEq)]
pub enum Element {
    Bool(bool),
    Int(i128),
    Real(f64),
    Complex(Complex128),
}

use Element::{Bool as Truth, Complex, Int, Real};

impl fmt::Debug for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Truth(x) => write!(f, "{x}"),
            Int(x) => write!(f, "{x}"),
            Real(x) => write!(f, "{x:?}"),
            Complex(x) => write!(f, "({:?},{:?})", x.re, x.im),
        }
    }
}

impl Element {
    pub fn int(self) -> i128 {
        match self {
            Truth(x) => i128::from(x),
            Int(x) => x,
            Real(x) => x as i128,
            Complex(x) => x.re as i128,
        }
    }

    pub fn real(self) -> f64 {
        match self {
            Truth(x) => f64::from(u8::from(x)),
            Int(x) => x as f64,
            Real(x) => x,
            Complex(x) => x.re,
        }
    }

    pub fn complex(self) -> Complex128 {
        if let Complex(x) = self { x } else { Complex128::new(self.real(), 0.0) }
    }

    /// Returns true if the element is not zero, as in Python.
    pub fn truth(self) -> bool {
        match self {
            Truth(x) => x,
            Int(x) => x != 0,
            Real(x) => x != 0.0,
            Complex(x) => x != Complex128::new(0.0, 0.0),
        }
    }

    /// Compares real elements. Returns `None` for NaN.
    pub fn order(self, other: Element) -> Option<Ordering> {
        match (self, other) {
            (Real(x), Real(y)) => x.partial_cmp(&y),
            (x, y) => Some(x.int().cmp(&y.int())),
        }
    }

    /// Converts the element to a dtype: floats are rounded, integers wrapped, and floats truncated
    /// to integers.
    pub fn fit(self, dtype: DType) -> Element {
        let narrow = |x: f64| f64::from(x as f32);
        match dtype {
            DType::Bool => Truth(self.truth()),
            DType::Float32 => Real(narrow(self.real())),
            DType::Float64 => Real(self.real()),
            DType::Complex64 => {
                Complex(Complex128::new(narrow(self.complex().re), narrow(self.complex().im)))
            }
            DType::Complex128 => Complex(self.complex()),
            _ => {
                let bits = 8 * dtype.size() as u32;
                let low = self.int() & ((1 << bits) - 1);
                let negative = is_signed(dtype) && low >> (bits - 1) == 1;
                Int(if negative { low - (1 << bits) } else { low })
            }
        }
    }

    fn bytes(self, dtype: DType) -> Vec<u8> {
        match dtype {
            DType::Bool => vec![u8::from(self.truth())],
            DType::Float32 => (self.real() as f32).to_le_bytes().to_vec(),
            DType::Float64 => self.real().to_le_bytes().to_vec(),
            DType::Complex64 => {
                [(self.complex().re as f32).to_le_bytes(), (self.complex().im as f32).to_le_bytes()]
                    .concat()
            }
            DType::Complex128 => {
                [self.complex().re.to_le_bytes(), self.complex().im.to_le_bytes()].concat()
            }
            _ => self.int().to_le_bytes()[..dtype.size()].to_vec(),
        }
    }
}

pub fn is_signed(dtype: DType) -> bool {
    matches!(dtype, DType::Int8 | DType::Int16 | DType::Int32 | DType::Int64)
}

pub fn is_complex(dtype: DType) -> bool {
    matches!(dtype, DType::Complex64 | DType::Complex128)
}

/// Returns the dtype of a complex dtype's parts, or the dtype itself.
pub fn part(dtype: DType) -> DType {
    match dtype {
        DType::Complex64 => DType::Float32,
        DType::Complex128 => DType::Float64,
        other => other,
    }
}

/// Conversion of a Rust type to elements.
pub trait Seen: freestone_engine::kernels::dtype::Element {
    fn seen(self) -> Element;
}

macro_rules! seen {
    ($($t:ty: $x:ident => $seen:expr),* $(,)?) => { $(
        impl Seen for $t {
            fn seen(self) -> Element {
                let $x = self;
                $seen
            }
        }
    )* };
}
seen! {
    Bool: x => Truth(x.0 != 0),
    i8: x => Int(x.into()),
    i16: x => Int(x.into()),
    i32: x => Int(x.into()),
    i64: x => Int(x.into()),
    u8: x => Int(x.into()),
    u16: x => Int(x.into()),
    u32: x => Int(x.into()),
    u64: x => Int(x.into()),
    f32: x => Real(x.into()),
    f64: x => Real(x),
    Complex64: x => Complex(Complex128::new(x.re.into(), x.im.into())),
    Complex128: x => Complex(x),
}

/// Stores values in a new store, in chunks of a shape.
pub fn stored(values: &ArrayD<Element>, dtype: DType, chunks: &[u64]) -> Array {
    let shape: Vec<u64> = values.shape().iter().map(|n| *n as u64).collect();
    let mut zarr = document(&shape, chunks, dtype.name());
    if is_complex(dtype) {
        zarr["fill_value"] = json!([0.0, 0.0]);
    }
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    store.write("a/zarr.json", &serde_json::to_vec(&zarr).unwrap()).unwrap();
    let elements: Vec<Vec<u8>> = values.iter().map(|x| x.bytes(dtype)).collect();
    for (key, bytes) in chunk_files(&shape, chunks, &elements) {
        store.write(&format!("a/{key}"), &bytes).unwrap();
    }
    freestone::open_in(&store, "a").unwrap()
}

/// Computes an array with the library.
pub fn computed(array: &Array, spec: &Spec) -> Result<ArrayD<Element>, freestone::Error> {
    dispatch!(all, array.dtype().unwrap(), T => {
        freestone::compute_with::<T>(array, spec, &Serial).map(|a| a.mapv(Seen::seen))
    })
}

/// Returns a one-dimensional array.
pub fn list(values: Vec<Element>) -> ArrayD<Element> {
    ArrayD::from_shape_vec(IxDyn(&[values.len()]), values).unwrap()
}

/// The tolerance of a comparison.
#[derive(Clone, Copy, Debug)]
pub enum Near {
    /// Equal values. Zeros of either sign are equal, and NaN equals NaN.
    Exact,
    /// Units in the last place; for complex numbers, 16 times as many, relative to the magnitude.
    Ulps(u64),
}

/// Returns the distance in units in the last place of a float dtype.
pub fn ulps(x: f64, y: f64, dtype: DType) -> u64 {
    let wide = |x: f64| {
        if x.is_sign_negative() {
            i128::from(i64::MIN) - i128::from(x.to_bits() as i64)
        } else {
            i128::from(x.to_bits())
        }
    };
    let narrow = |x: f64| {
        let x = x as f32;
        if x.is_sign_negative() {
            i128::from(i32::MIN) - i128::from(x.to_bits() as i32)
        } else {
            i128::from(x.to_bits())
        }
    };
    let distance =
        if part(dtype) == DType::Float32 { narrow(x) - narrow(y) } else { wide(x) - wide(y) };
    distance.unsigned_abs() as u64
}

impl Near {
    /// Returns true if `found` is within the tolerance of `expected`.
    pub fn agree(self, found: Element, expected: Element, dtype: DType) -> bool {
        let same = |x: f64, y: f64| x == y || (x.is_nan() && y.is_nan());
        match (found, expected, self) {
            (Real(x), Real(y), _) if same(x, y) => true,
            (Real(x), Real(y), Near::Ulps(most)) => {
                !x.is_nan() && !y.is_nan() && ulps(x, y, dtype) <= most
            }
            (Complex(x), Complex(y), _) if same(x.re, y.re) && same(x.im, y.im) => true,
            (Complex(x), Complex(y), Near::Ulps(most)) => {
                let eps =
                    if dtype == DType::Complex64 { f64::from(f32::EPSILON) } else { f64::EPSILON };
                (x - y).norm() <= 16.0 * most as f64 * eps * y.norm()
            }
            (x, y, _) => x == y,
        }
    }
}
