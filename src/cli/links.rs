//! `layerfs install-links`.

use std::ffi::OsString;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use super::overlay::{COMPATIBLE_NAME, HELPER_NAMES};

/// Make the links by which others start layerfs
///
/// As fuse-overlayfs it is what podman, buildah, containerd and Apptainer ask for; as mount.fuse.layerfs and mount.layerfs it
/// is mount(8)'s helper for these types.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Make them in DIR/bin and DIR/sbin [default: /usr/local/bin, and /sbin, the only place where mount(8) looks]
    #[arg(long, value_name = "DIR")]
    prefix: Option<PathBuf>,

    /// Replace what is there under these names, even if it is not ours
    #[arg(long)]
    force: bool,
}

/// Makes the links and says what it did. Nothing is changed if one of them can't be made for what is in its place.
pub fn run(args: &Args) -> anyhow::Result<()> {
    // Where the program was started through a link, this is the file itself.
    let program =
        std::env::current_exe().and_then(std::fs::canonicalize).context("the program's own file can't be found")?;
    let links: Vec<(PathBuf, Found)> = places(args.prefix.as_deref())
        .into_iter()
        .map(|link| Ok((link.clone(), look(&link, &program)?)))
        .collect::<anyhow::Result<_>>()?;
    let strangers: Vec<String> =
        links.iter().filter(|(_, found)| *found == Found::Other).map(|(link, _)| link.display().to_string()).collect();
    if !strangers.is_empty() && !args.force {
        bail!("not made by layerfs, and left as it is: {} (--force replaces it)", strangers.join(", "));
    }
    for (link, found) in links {
        if found == Found::Same {
            println!("{} -> {} is there already", link.display(), program.display());
            continue;
        }
        make(&link, &program).with_context(|| format!("{} can't be made", link.display()))?;
        let replaced = if found == Found::Nothing { "" } else { ", in place of what was there" };
        println!("{} -> {}{replaced}", link.display(), program.display());
    }
    Ok(())
}

fn places(prefix: Option<&Path>) -> Vec<PathBuf> {
    let (bin, sbin) = match prefix {
        Some(prefix) => (prefix.join("bin"), prefix.join("sbin")),
        None => ("/usr/local/bin".into(), "/sbin".into()),
    };
    std::iter::once(bin.join(COMPATIBLE_NAME)).chain(HELPER_NAMES.map(|name| sbin.join(name))).collect()
}

/// What is in the place of a link.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    Nothing,
    /// The link as it is to be.
    Same,
    /// A link to another layerfs.
    Older,
    Other,
}

fn look(link: &Path, program: &Path) -> anyhow::Result<Found> {
    let to = match std::fs::read_link(link) {
        Ok(to) => to,
        Err(e) if matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {
            return Ok(Found::Nothing);
        }
        // Not a link.
        Err(e) if e.kind() == std::io::ErrorKind::InvalidInput => return Ok(Found::Other),
        Err(e) => return Err(e).with_context(|| format!("{} can't be looked at", link.display())),
    };
    Ok(match to {
        to if to == program => Found::Same,
        to if to.file_name() == program.file_name() => Found::Older,
        _ => Found::Other,
    })
}

/// Under another name first: the place is never empty.
fn make(link: &Path, program: &Path) -> std::io::Result<()> {
    if let Some(dir) = link.parent() {
        std::fs::create_dir_all(dir)?;
    }
    let mut name = OsString::from(link);
    name.push(format!(".{}", std::process::id()));
    symlink(program, &name)?;
    std::fs::rename(&name, link).inspect_err(|_| {
        // Nothing more can be done about it.
        let _left = std::fs::remove_file(&name);
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_links_to_layerfs_are_ours() {
        let dir = tempfile::tempdir().unwrap();
        let program = Path::new("/opt/layerfs");
        let link = dir.path().join("link");
        assert_eq!(look(&link, program).unwrap(), Found::Nothing);
        for (to, found) in
            [("/opt/layerfs", Found::Same), ("/old/layerfs", Found::Older), ("/usr/bin/fuse-overlayfs", Found::Other)]
        {
            symlink(to, &link).unwrap();
            assert_eq!(look(&link, program).unwrap(), found, "{to}");
            std::fs::remove_file(&link).unwrap();
        }
        std::fs::write(&link, "").unwrap();
        assert_eq!(look(&link, program).unwrap(), Found::Other);
        make(&link, program).unwrap();
        assert_eq!(look(&link, program).unwrap(), Found::Same);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn mount_finds_its_helpers_without_a_prefix() {
        let sbin = |prefix: Option<&Path>| places(prefix).last().unwrap().parent().unwrap().to_owned();
        assert_eq!(sbin(None), Path::new("/sbin"));
        assert_eq!(sbin(Some(Path::new("/opt/x"))), Path::new("/opt/x/sbin"));
        assert_eq!(places(Some(Path::new("p")))[0], Path::new("p/bin/fuse-overlayfs"));
    }
}
