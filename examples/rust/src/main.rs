// SPDX-License-Identifier: Apache-2.0
//! earnest-tone MODEL: lets the model hear half a second of a falling tone and asks what it was.
mod earnest;

use std::f32::consts::TAU;
use std::io::Write;

const RATE: u32 = 48_000;

fn falling_tone() -> Vec<f32> {
    let at = |i: u32| i as f32 / RATE as f32;
    (0..RATE / 2).map(|i| 0.3 * (TAU * (600.0 - 400.0 * at(i)) * at(i)).sin()).collect()
}

fn main() -> earnest::Result<()> {
    let folder = std::env::args().nth(1).ok_or("usage: earnest-tone MODEL")?;
    assert_eq!(earnest::abi_version(), earnest::ABI_VERSION);
    let engine = earnest::Engine::load(&folder)?;
    let mut session = engine.session()?;
    session.add_sound(&falling_tone(), RATE)?;
    session.add_text("Did it rise or fall?")?;
    session.answer(32, |text| {
        print!("{text}");
        std::io::stdout().flush().expect("stdout");
    })?;
    println!();
    Ok(())
}
