// SPDX-License-Identifier: Apache-2.0
//! earnest.h as far as this program needs it, and types around it that clean up after themselves.

use std::ffi::{c_char, c_double, c_int, c_void, CStr, CString};
use std::{mem, ptr, slice};

mod c {
    use super::*;

    #[repr(C)]
    pub struct Event {
        pub struct_size: usize,
        pub kind: c_int,
        pub text: *const c_char,
        pub text_bytes: usize,
        pub done: u32,
        pub total: u32,
        pub finish_reason: c_int,
        pub status: c_int,
    }

    /// The beginning of earnest_generation_params: what follows in the header keeps its defaults.
    #[repr(C)]
    pub struct GenerationParams {
        pub struct_size: usize,
        pub max_tokens: u32,
        pub thinking: c_int,
        pub temperature: c_double,
    }

    extern "C" {
        pub fn earnest_abi_version() -> u32;
        pub fn earnest_last_error() -> *const c_char;
        pub fn earnest_model_load(folder: *const c_char, params: *const c_void, model: *mut *mut c_void) -> c_int;
        pub fn earnest_model_destroy(model: *mut c_void);
        pub fn earnest_engine_create(model: *mut c_void, params: *const c_void, engine: *mut *mut c_void) -> c_int;
        pub fn earnest_engine_destroy(engine: *mut c_void);
        pub fn earnest_session_create(engine: *mut c_void, params: *const c_void, session: *mut *mut c_void) -> c_int;
        pub fn earnest_session_destroy(session: *mut c_void);
        pub fn earnest_session_add_text(
            session: *mut c_void,
            role: *const c_char,
            text: *const c_char,
            bytes: usize,
        ) -> c_int;
        pub fn earnest_audio_create(
            session: *mut c_void,
            role: *const c_char,
            rate: u32,
            channels: u32,
            audio: *mut *mut c_void,
        ) -> c_int;
        pub fn earnest_audio_push_f32(audio: *mut c_void, samples: *const f32, frames: usize) -> c_int;
        pub fn earnest_audio_commit(audio: *mut c_void) -> c_int;
        pub fn earnest_audio_destroy(audio: *mut c_void);
        pub fn earnest_generation_params_default(params: *mut GenerationParams, struct_size: usize);
        pub fn earnest_generation_start(
            session: *mut c_void,
            params: *const GenerationParams,
            generation: *mut *mut c_void,
        ) -> c_int;
        pub fn earnest_generation_next(generation: *mut c_void, timeout_ms: i64, event: *mut Event) -> c_int;
        pub fn earnest_generation_destroy(generation: *mut c_void);
    }
}

pub const ABI_VERSION: u32 = 0;

pub fn abi_version() -> u32 {
    unsafe { c::earnest_abi_version() }
}

pub type Result<T> = std::result::Result<T, String>;

fn checked(status: c_int) -> Result<()> {
    if status == 0 {
        return Ok(());
    }
    Err(unsafe { CStr::from_ptr(c::earnest_last_error()) }.to_string_lossy().into_owned())
}

/// A handle and the function that gives it back.
struct Handle(*mut c_void, unsafe extern "C" fn(*mut c_void));

impl Handle {
    fn new(
        create: impl FnOnce(*mut *mut c_void) -> c_int,
        destroy: unsafe extern "C" fn(*mut c_void),
    ) -> Result<Handle> {
        let mut made = ptr::null_mut();
        checked(create(&mut made))?;
        Ok(Handle(made, destroy))
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        unsafe { (self.1)(self.0) }
    }
}

pub struct Engine(Handle);

impl Engine {
    /// The engine keeps the model, so that its handle may go.
    pub fn load(folder: &str) -> Result<Engine> {
        let folder = CString::new(folder).map_err(|error| error.to_string())?;
        let model = Handle::new(
            |out| unsafe { c::earnest_model_load(folder.as_ptr(), ptr::null(), out) },
            c::earnest_model_destroy,
        )?;
        let create = |out| unsafe { c::earnest_engine_create(model.0, ptr::null(), out) };
        Ok(Engine(Handle::new(create, c::earnest_engine_destroy)?))
    }

    pub fn session(&self) -> Result<Session> {
        let create = |out| unsafe { c::earnest_session_create(self.0 .0, ptr::null(), out) };
        Ok(Session(Handle::new(create, c::earnest_session_destroy)?))
    }
}

pub struct Session(Handle);

impl Session {
    pub fn add_text(&mut self, text: &str) -> Result<()> {
        let (start, bytes) = (text.as_ptr() as *const c_char, text.len());
        checked(unsafe { c::earnest_session_add_text(self.0 .0, c"user".as_ptr(), start, bytes) })
    }

    /// Samples of one channel, pushed as a microphone would bring them.
    pub fn add_sound(&mut self, samples: &[f32], rate: u32) -> Result<()> {
        let create = |out| unsafe { c::earnest_audio_create(self.0 .0, c"user".as_ptr(), rate, 1, out) };
        let audio = Handle::new(create, c::earnest_audio_destroy)?;
        for piece in samples.chunks(rate as usize / 50) {
            checked(unsafe { c::earnest_audio_push_f32(audio.0, piece.as_ptr(), piece.len()) })?;
        }
        checked(unsafe { c::earnest_audio_commit(audio.0) })
    }

    /// Calls `hear` with each piece of the reply as it comes.
    pub fn answer(&mut self, most_tokens: u32, mut hear: impl FnMut(&str)) -> Result<()> {
        let mut params: c::GenerationParams = unsafe { mem::zeroed() };
        unsafe { c::earnest_generation_params_default(&mut params, mem::size_of_val(&params)) };
        params.max_tokens = most_tokens;
        let create = |out| unsafe { c::earnest_generation_start(self.0 .0, &params, out) };
        let generation = Handle::new(create, c::earnest_generation_destroy)?;
        let mut event: c::Event = unsafe { mem::zeroed() };
        event.struct_size = mem::size_of_val(&event);
        loop {
            checked(unsafe { c::earnest_generation_next(generation.0, -1, &mut event) })?;
            match event.kind {
                3 => {
                    let bytes = unsafe { slice::from_raw_parts(event.text as *const u8, event.text_bytes) };
                    hear(&String::from_utf8_lossy(bytes));
                }
                4 => return checked(event.status),
                _ => {}
            }
        }
    }
}
