//! `--device`: where a command computes.

use std::str::FromStr;

use weft_tensor::Device;

/// The option, for every command that computes.
#[derive(clap::Args)]
pub struct DeviceArg {
    /// Where to compute: auto (a GPU if there is one), cpu, cuda, or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    device: Choice,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Choice {
    Auto,
    Cpu,
    Cuda(usize),
}

impl FromStr for Choice {
    type Err = String;

    fn from_str(text: &str) -> Result<Choice, String> {
        match text {
            "auto" => Ok(Choice::Auto),
            "cpu" => Ok(Choice::Cpu),
            "cuda" => Ok(Choice::Cuda(0)),
            _ => match text.strip_prefix("cuda:").map(str::parse) {
                Some(Ok(n)) => Ok(Choice::Cuda(n)),
                _ => Err("give auto, cpu, cuda or cuda:N".into()),
            },
        }
    }
}

impl DeviceArg {
    /// The device, opened. `auto` takes the first GPU, or says in the log why it is the CPU.
    pub fn open(&self) -> anyhow::Result<Device> {
        let (device, why) = self.choose()?;
        match why {
            Some(why) => tracing::info!("running on {device}: {why}"),
            None => tracing::info!("running on {device}"),
        }
        Ok(device)
    }

    /// The device, and why `auto` did not find a GPU.
    pub fn choose(&self) -> anyhow::Result<(Device, Option<String>)> {
        Ok(match self.device {
            Choice::Cpu => (Device::Cpu, None),
            Choice::Cuda(n) => (Device::cuda(n)?, None),
            Choice::Auto => match Device::cuda(0) {
                Ok(gpu) => (gpu, None),
                Err(e) => (Device::Cpu, Some(e.to_string())),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read_as_they_are_written() {
        assert_eq!("auto".parse(), Ok(Choice::Auto));
        assert_eq!("cpu".parse(), Ok(Choice::Cpu));
        assert_eq!("cuda".parse(), Ok(Choice::Cuda(0)));
        assert_eq!("cuda:3".parse(), Ok(Choice::Cuda(3)));
        for bad in ["", "gpu", "cuda:", "cuda:x", "cuda:-1", "CPU"] {
            assert!(bad.parse::<Choice>().is_err(), "{bad}");
        }
    }
}
