//! adaptk from Rust, without bindgen: the declarations that a program needs, a plan that frees itself, and a fit.
//!
//! PKG_CONFIG_PATH=$(python -m adaptk info --pkgconfig-dir) \
//!     sh -c 'rustc -O train.rs -C link-args="$(pkg-config --libs adaptk)"' && ./train
use std::ffi::{CStr, CString};
use std::marker::PhantomData;
use std::os::raw::{c_char, c_int, c_void};
use std::ptr;

/// As in `adaptk/adaptk.h`; tensors are DLPack's.
#[allow(non_camel_case_types, dead_code)]
mod ffi {
    use super::{c_char, c_int, c_void};

    #[repr(C)]
    pub struct adaptk_device {
        pub device_type: c_int,
        pub device_id: i32,
    }

    #[repr(C)]
    pub struct adaptk_dtype {
        pub code: u8,
        pub bits: u8,
        pub lanes: u16,
    }

    #[repr(C)]
    pub struct adaptk_tensor {
        pub data: *mut c_void,
        pub device: adaptk_device,
        pub ndim: i32,
        pub dtype: adaptk_dtype,
        pub shape: *mut i64,
        pub strides: *mut i64,
        pub byte_offset: u64,
    }

    #[repr(C)]
    pub struct adaptk_hyper {
        pub name: *const c_char,
        pub value: f64,
    }

    /// What comes behind it in the header may be left out: the library goes by `size`.
    #[repr(C)]
    pub struct adaptk_step_options {
        pub size: usize,
        pub grad_scale: f64,
        pub clip_norm: f64,
        pub skip_nonfinite: c_int,
        pub want_norm: c_int,
        pub stream: *mut c_void,
    }

    #[repr(C)]
    pub struct adaptk_step_report {
        pub size: usize,
        pub grad_norm: f64,
        pub has_norm: c_int,
        pub skipped: c_int,
    }

    pub enum adaptk_plan {}
    pub type Tensors = *const *const adaptk_tensor;

    extern "C" {
        pub fn adaptk_last_error() -> *const c_char;
        pub fn adaptk_plan_create(
            rule: *const c_char, hypers: *const adaptk_hyper, hyper_count: usize, count: usize, params: Tensors,
            states: Tensors, plan: *mut *mut adaptk_plan,
        ) -> c_int;
        pub fn adaptk_plan_init_states(plan: *mut adaptk_plan) -> c_int;
        pub fn adaptk_plan_step(
            plan: *mut adaptk_plan, count: usize, grads: Tensors, options: *const adaptk_step_options,
        ) -> c_int;
        pub fn adaptk_plan_report(plan: *mut adaptk_plan, report: *mut adaptk_step_report) -> c_int;
        pub fn adaptk_plan_destroy(plan: *mut adaptk_plan) -> c_int;
    }
}

fn checked(status: c_int) -> Result<(), String> {
    if status == 0 {
        return Ok(());
    }
    // The message belongs to the library and to this thread.
    Err(unsafe { CStr::from_ptr(ffi::adaptk_last_error()) }.to_string_lossy().into_owned())
}

fn describe(data: *mut f32, shape: &mut [i64; 1]) -> ffi::adaptk_tensor {
    ffi::adaptk_tensor {
        data: data.cast(),
        device: ffi::adaptk_device { device_type: 1, device_id: 0 }, // kDLCPU
        ndim: 1,
        dtype: ffi::adaptk_dtype { code: 2, bits: 32, lanes: 1 }, // kDLFloat
        shape: shape.as_mut_ptr(),
        strides: ptr::null_mut(),
        byte_offset: 0,
    }
}

/// Steps of one vector by AdamW. The plan keeps the addresses of the params and of the states, so the params stay
/// borrowed, and are seen through it.
struct Optimizer<'a> {
    plan: *mut ffi::adaptk_plan,
    params: *mut f32,
    size: usize,
    _states: [Vec<f32>; 2],
    _borrowed: PhantomData<&'a mut [f32]>,
}

impl<'a> Optimizer<'a> {
    fn new(params: &'a mut [f32], hypers: &[(&str, f64)]) -> Result<Self, String> {
        let size = params.len();
        let mut states = [vec![0.0f32; size], vec![0.0f32; size]];
        let names: Vec<CString> = hypers.iter().map(|(name, _)| CString::new(*name).unwrap()).collect();
        let given: Vec<ffi::adaptk_hyper> = names
            .iter()
            .zip(hypers)
            .map(|(name, (_, value))| ffi::adaptk_hyper { name: name.as_ptr(), value: *value })
            .collect();
        let mut shape = [size as i64];
        let at = params.as_mut_ptr();
        let param = describe(at, &mut shape);
        let first = describe(states[0].as_mut_ptr(), &mut shape);
        let second = describe(states[1].as_mut_ptr(), &mut shape);
        let mut plan = ptr::null_mut();
        unsafe {
            checked(ffi::adaptk_plan_create(
                b"adamw\0".as_ptr().cast(), given.as_ptr(), given.len(), 1, [&param as *const _].as_ptr(),
                [&first as *const _, &second as *const _].as_ptr(), &mut plan,
            ))?;
            let made = Self { plan, params: at, size, _states: states, _borrowed: PhantomData };
            checked(ffi::adaptk_plan_init_states(plan))?;
            Ok(made)
        }
    }

    fn params(&self) -> &[f32] {
        unsafe { std::slice::from_raw_parts(self.params, self.size) }
    }

    /// Returns the norm of the gradient, before it is clipped.
    fn step(&mut self, grad: &mut [f32], clip_norm: f64) -> Result<f64, String> {
        let mut shape = [grad.len() as i64];
        let tensor = describe(grad.as_mut_ptr(), &mut shape);
        let options = ffi::adaptk_step_options {
            size: std::mem::size_of::<ffi::adaptk_step_options>(),
            grad_scale: 1.0,
            clip_norm,
            skip_nonfinite: 0,
            want_norm: 0,
            stream: ptr::null_mut(),
        };
        let mut report = ffi::adaptk_step_report {
            size: std::mem::size_of::<ffi::adaptk_step_report>(),
            grad_norm: 0.0,
            has_norm: 0,
            skipped: 0,
        };
        unsafe {
            checked(ffi::adaptk_plan_step(self.plan, 1, [&tensor as *const _].as_ptr(), &options))?;
            checked(ffi::adaptk_plan_report(self.plan, &mut report))?;
        }
        Ok(report.grad_norm)
    }
}

impl Drop for Optimizer<'_> {
    fn drop(&mut self) {
        unsafe { ffi::adaptk_plan_destroy(self.plan) };
    }
}

fn main() -> Result<(), String> {
    // A line through points: slope 3, intercept -1.
    let points: Vec<(f32, f32)> = (0..20).map(|i| i as f32 / 10.0 - 1.0).map(|x| (x, 3.0 * x - 1.0)).collect();
    let mut weights = vec![0.0f32; 2];
    let mut opt = Optimizer::new(&mut weights, &[("lr", 0.05), ("weight_decay", 0.0)])?;
    for t in 0..600 {
        let (slope, intercept) = (opt.params()[0], opt.params()[1]);
        let mut grad = [0.0f32; 2];
        for (x, y) in &points {
            let error = slope * x + intercept - y;
            grad[0] += error * x / points.len() as f32;
            grad[1] += error / points.len() as f32;
        }
        let norm = opt.step(&mut grad, 1.0)?;
        if t % 100 == 0 {
            println!("step {t}: gradient {norm:.4}");
        }
    }
    let wrong = opt.step(&mut [0.0f32; 3], 1.0).unwrap_err();
    println!("refused: {wrong}");
    drop(opt);
    println!("slope {:.3}, intercept {:.3}", weights[0], weights[1]);
    if (weights[0] - 3.0).abs() < 1e-3 && (weights[1] + 1.0).abs() < 1e-3 { Ok(()) } else { Err("no fit".into()) }
}
